"""Pickles, read without running them.

A pickle is a program for a small stack machine. It names functions and classes, and has them
called. The machine here follows the same programs and imports, makes and calls nothing: a name
becomes a `Global`, a call or a construction a `Record` of what was asked for. What a record means
is for the reader to say (`values.py`, `published.py`). A name that the reader does
not expect ends the reading.

Only texts are keys here: hashing anything else can be made slow, or deep enough to overflow the
stack.
"""

import pickle
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from sid_scale.pickles.opcodes import OPCODES, Opcode, PickleError, read_opcodes

# Stands in an allow-list for what a pickle refers to without holding it.
PERSISTENT_ID = "a persistent id (data beside the pickle, as in torch.save's files)"
# Names by which other versions of Python and numpy know the same things.
_ALIASES = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins."}


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that a pickle names, not imported: "collections.OrderedDict"."""

    name: str


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object that a pickle wants made, not made."""

    kind: str  # what was to be called, a name from the allow-list
    arguments: tuple[Any, ...] = ()
    state: Any = None  # for its __setstate__
    entries: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


def read_pickle(file: BinaryIO, where: str, allowed: Collection[str], limit: int = OPCODES) -> Any:
    """Follows the pickle at the file's position, and leaves the file behind the pickle's end.

    Args:
        file: seekable; must stay open as long as a `Span` is to be read.
        where: what errors call it.
        allowed: names that may occur, as "module.name".
        limit: how many opcodes the pickle may have.

    Returns:
        None, bool, int, float, str, bytes, list, dict or tuple, of the same or of `Global`,
        `Record`, `Span`. They may contain each other.

    Raises:
        PickleError: not a pickle of protocol 2 to 5, damaged, too large, or it asks for a name
            that is not allowed; says which, and where in the file.
    """
    machine = _Machine(allowed)
    for opcode in read_opcodes(file, where, limit):
        try:
            machine.follow(opcode)
        except _RefusedError as refused:
            raise PickleError(
                f"{where}: byte {opcode.position}: asks for {refused}, which no network of EDM2 or "
                "SiD needs. Nothing was run. Take the file from its publisher"
            ) from None
        except (IndexError, KeyError, TypeError, ValueError):
            raise PickleError(
                f"{where}: byte {opcode.position}: {opcode.name} makes no sense here: the file "
                "is damaged or holds no network"
            ) from None
    return machine.result


class _RefusedError(Exception):
    """Something that is not allowed."""


class _Machine:
    """Stack and memo; an opcode that makes no sense is one of Python's own errors."""

    def __init__(self, allowed: Collection[str]):
        self._allowed = allowed
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []  # stacks that wait for the one above their mark
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def follow(self, opcode: Opcode) -> None:
        """Does what the opcode says."""
        code, argument = opcode.code, opcode.argument
        if code in _CONSTANTS:
            self._stack.append(_CONSTANTS[code]())
        elif code in _OPERATIONS:
            _OPERATIONS[code](self)
        elif code in (pickle.BINPUT, pickle.LONG_BINPUT):
            self._memo[argument] = self._stack[-1]
        elif code in (pickle.BINGET, pickle.LONG_BINGET):
            self._stack.append(self._memo[argument])
        elif code == pickle.GLOBAL:
            self._stack.append(Global(self._permit(argument)))
        elif code != pickle.FRAME:
            self._stack.append(argument)

    def stop(self) -> None:
        if self._below_marks or len(self._stack) != 1:
            raise ValueError
        self.result = self.pop()

    # --- the stack --------------------------------------------------------------------------

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._below_marks.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        above, self._stack = self._stack, self._below_marks.pop()
        return above

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # --- containers -------------------------------------------------------------------------

    def tuple_of(self, count: int) -> None:
        self._stack.append(tuple(self.pop() for _ in range(count))[::-1])

    def tuple_to_mark(self) -> None:
        above = self.pop_to_mark()
        self._stack.append(tuple(above))

    def frozen_set(self) -> None:
        above = self.pop_to_mark()
        self._stack.append(Record("builtins.set", items=above))

    def append(self) -> None:
        self._extend([self.pop()])

    def appends(self) -> None:
        self._extend(self.pop_to_mark())

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._update([key], [value])

    def set_items(self) -> None:
        flat = self.pop_to_mark()
        self._update(flat[::2], flat[1::2])

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        (target.items if isinstance(target, Record) else _expect(list, target)).extend(items)

    def _update(self, keys: list[Any], values: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if isinstance(target, Record) else _expect(dict, target)
        for key, value in zip(keys, values, strict=True):
            entries[_expect(str, key)] = value

    # --- names, calls, constructions: none is looked up, called or made -----------------------

    def stack_global(self) -> None:
        name, module = _expect(str, self.pop()), _expect(str, self.pop())
        self._stack.append(Global(self._permit(f"{module}.{name}")))

    def persistent_id(self) -> None:
        if PERSISTENT_ID not in self._allowed:
            raise _RefusedError(PERSISTENT_ID)
        self._stack.append(Record(PERSISTENT_ID, (self.pop(),)))

    def call(self) -> None:
        arguments, function = _expect(tuple, self.pop()), _expect(Global, self.pop())
        self._stack.append(Record(function.name, arguments))

    def build(self) -> None:
        state, record = self.pop(), _expect(Record, self._stack[-1])
        record.state = state

    def _permit(self, asked: str) -> str:
        name = asked
        for alias, usual in _ALIASES.items():
            if asked.startswith(alias):
                name = usual + asked.removeprefix(alias)
        if name not in self._allowed:
            raise _RefusedError(ascii(asked))
        return name


def _expect(kind: type, value: Any) -> Any:
    """`value` if it is of that kind, else TypeError."""
    if not isinstance(value, kind):
        raise TypeError(kind)
    return value


_CONSTANTS: dict[bytes, Callable[[], Any]] = {
    pickle.NONE: lambda: None,
    pickle.NEWTRUE: lambda: True,
    pickle.NEWFALSE: lambda: False,
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_TUPLE: tuple,
    pickle.EMPTY_SET: lambda: Record("builtins.set"),
}
_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.STOP: _Machine.stop,
    pickle.MARK: _Machine.mark,
    pickle.MEMOIZE: _Machine.memoize,
    pickle.TUPLE1: lambda machine: machine.tuple_of(1),
    pickle.TUPLE2: lambda machine: machine.tuple_of(2),
    pickle.TUPLE3: lambda machine: machine.tuple_of(3),
    pickle.TUPLE: _Machine.tuple_to_mark,
    pickle.FROZENSET: _Machine.frozen_set,
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: _Machine.appends,
    pickle.ADDITEMS: _Machine.appends,
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_items,
    pickle.STACK_GLOBAL: _Machine.stack_global,
    pickle.BINPERSID: _Machine.persistent_id,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.build,
}
