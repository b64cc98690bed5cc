"""The opcodes of a pickle, one after the other, from a file that nobody vouches for.

Nothing is taken at the file's word: lengths are compared with what the file still holds, long
texts and bytes stay in the file until somebody wants them (`Span`), and the number of opcodes has
a limit, and with it all that they can build.
"""

import os
import pickle
import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from sid_scale.errors import SidScaleError

OPCODES = 250_000  # in one pickle; EDM2's networks take 31,000
INLINE = 1024  # bytes; what is longer becomes a Span
LONGEST_NAME = 256  # bytes
LONGEST_INTEGER = 16  # bytes

# How opcodes' arguments lie in the file, as layouts of `struct`. What no writer of networks uses
# is not here: text numbers, INST, OBJ, extensions, out-of-band buffers; DUP and POP neither, so
# that everything a pickle makes is part of what it yields.
_BARE = (
    *(pickle.MARK, pickle.STOP, pickle.MEMOIZE),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
    *(pickle.STACK_GLOBAL, pickle.BINPERSID, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD),
)
_NUMBERS = {
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
    pickle.BINPUT: "<B",
    pickle.LONG_BINPUT: "<I",
    pickle.BINGET: "<B",
    pickle.LONG_BINGET: "<I",
}
_LENGTHS_OF_INTEGERS = {pickle.LONG1: "<B", pickle.LONG4: "<I"}
_LENGTHS_OF_TEXTS = {
    pickle.SHORT_BINUNICODE: "<B",
    pickle.BINUNICODE: "<I",
    pickle.BINUNICODE8: "<Q",
}
_LENGTHS_OF_BYTES = {
    pickle.SHORT_BINBYTES: "<B",
    pickle.BINBYTES: "<I",
    pickle.BINBYTES8: "<Q",
    pickle.BYTEARRAY8: "<Q",
}
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


class PickleError(SidScaleError):
    """A pickle that cannot be used; the message says which, where in it, why and what to do."""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Span:
    """A long text (UTF-8) or bytes that are still in their file."""

    file: BinaryIO
    start: int
    length: int
    is_text: bool

    def read(self) -> bytes:
        """The bytes; fewer if somebody has cut the file since."""
        self.file.seek(self.start)
        return self.file.read(self.length)


class Opcode(NamedTuple):
    """One opcode of a pickle."""

    position: int  # in the file
    code: bytes  # a constant of `pickle`
    argument: Any  # None, int, float, str, bytes, Span; of GLOBAL "module.name"

    @property
    def name(self) -> str:
        """As `pickletools` has it."""
        return _NAMES.get(self.code, repr(self.code))


def read_opcodes(file: BinaryIO, where: str, limit: int = OPCODES) -> Iterator[Opcode]:
    """The opcodes of the pickle at the file's position, STOP included.

    Args:
        file: seekable; must stay open as long as a `Span` is to be read.
        where: what errors call it.
        limit: how many opcodes the pickle may have.

    Raises:
        PickleError: not a pickle of protocol 2 to 5, or one that is cut, too large, or holds
            opcodes that such a pickle has no use for.
    """
    reader = _Reader(file, where)
    reader.read_header()
    for _ in range(limit):
        opcode = reader.read_opcode()
        yield opcode
        if opcode.code == pickle.STOP:
            return
    raise reader.error(f"more than {limit} opcodes, far more than any network takes")


class _Reader:
    """Reads arguments, and knows where the file ends."""

    def __init__(self, file: BinaryIO, where: str):
        self._file, self._where = file, where
        self._position = file.tell()
        self._end = file.seek(0, os.SEEK_END)
        file.seek(self._position)

    def error(self, what: str) -> PickleError:
        return PickleError(f"{self._where}: byte {self._position}: {what}")

    def read_header(self) -> None:
        start = self._file.read(2)
        if not start:
            raise PickleError(f"{self._where}: empty; fetch it again")
        if len(start) < 2 or start[:1] != pickle.PROTO or start[1] not in range(2, 6):
            hint = " (but a zip archive, as torch.save makes them)" if start == b"PK" else ""
            raise PickleError(
                f"{self._where}: no pickle of protocol 2 to 5{hint}. EDM2's and SiD's networks "
                "are pickles in files named .pkl: name one of those, or fetch it again"
            )

    def read_opcode(self) -> Opcode:
        self._position = self._file.tell()
        code = self._take(1)
        return Opcode(self._position, code, self._argument(code))

    def _argument(self, code: bytes) -> Any:
        if code in _BARE:
            return None
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code in _LENGTHS_OF_TEXTS:
            return self._text_or_bytes(_LENGTHS_OF_TEXTS[code], is_text=True)
        if code in _LENGTHS_OF_BYTES:
            return self._text_or_bytes(_LENGTHS_OF_BYTES[code], is_text=False)
        if code in _LENGTHS_OF_INTEGERS:
            return self._integer(_LENGTHS_OF_INTEGERS[code])
        if code == pickle.GLOBAL:
            return f"{self._line()}.{self._line()}"
        if code == pickle.FRAME:  # groups what follows; its length may not exceed the file
            return self._length("<Q")
        name = Opcode(self._position, code, None).name
        raise self.error(f"opcode {name} is none that networks are written with")

    def _take(self, length: int) -> bytes:
        taken = self._file.read(length)
        if len(taken) < length:
            raise self.error("the file ends in the middle; fetch it again")
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _length(self, layout: str) -> int:
        length = self._number(layout)
        left = self._end - self._file.tell()
        if length > left:
            raise self.error(f"{length} bytes should follow, but {left} do; fetch the file again")
        return length

    def _integer(self, layout: str) -> int:
        length = self._length(layout)
        if length > LONGEST_INTEGER:
            raise self.error(f"an integer of {length} bytes, which no network needs")
        return int.from_bytes(self._take(length), "little", signed=True)

    def _text_or_bytes(self, layout: str, *, is_text: bool) -> str | bytes | Span:
        length = self._length(layout)
        if length > INLINE:
            span = Span(self._file, self._file.tell(), length, is_text)
            self._file.seek(length, os.SEEK_CUR)
            return span
        contents = self._take(length)
        return self._decode(contents) if is_text else contents

    def _line(self) -> str:
        line = self._file.readline(LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise self.error("a name that does not end")
        return self._decode(line[:-1])

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self.error("a text that is none") from None
