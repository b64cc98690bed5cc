"""Contents of a pickle as JSON and flat storages: what the records mean.

The JSON is a tree. None, bool, int, float and str are themselves, all else is a list that begins
with its kind:

- ["list", [value ...]], also for tuples and sets;
- ["dict", {key: value ...}];
- ["object", class name, {attribute: value ...}]: an object of one of EDM's persistent classes, a
  module of torch, or anything that has no meaning here (its name and no attributes);
- ["tensor", name of its storage, dtype, bytes of the storage, offset, shape, stride], the last
  three in elements: a tensor of torch, or an array or number of numpy.

Values that occur twice are written twice, storages once.
"""

import io
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

from sid_scale.pickles.unpickler import (
    DICTS,
    ENCODE,
    NUMPY_FROMBUFFER,
    NUMPY_RECONSTRUCT,
    NUMPY_SCALAR,
    PARAMETERS,
    PERSISTENT_CLASS,
    PERSISTENT_ID,
    REMEDY,
    SET,
    STORAGE,
    TENSOR,
    FileError,
    Record,
    RestrictedUnpickler,
)

VALUES = 250_000  # in one file; EDM2's networks have some 30,000
DEPTH = 100  # of values in values; EDM2's networks have some 20
LONGEST_TEXT = 1024  # characters. The source of a module is longer, and has no use here.
LONGEST_INTEGER = 128  # bits
WHOLE = "the whole"

_DTYPES = (  # safetensors' name, torch's, numpy's, bytes
    ("F64", "Double", "f8", 8),
    ("F32", "Float", "f4", 4),
    ("F16", "Half", "f2", 2),
    ("BF16", "BFloat16", "", 2),
    ("I64", "Long", "i8", 8),
    ("I32", "Int", "i4", 4),
    ("I16", "Short", "i2", 2),
    ("I8", "Char", "i1", 1),
    ("U8", "Byte", "u1", 1),
    ("BOOL", "Bool", "b1", 1),
)
BYTES = {name: size for name, _, _, size in _DTYPES}
TORCH_STORAGES = {f"torch.{torch}Storage": name for name, torch, _, _ in _DTYPES}
NUMPY_DTYPES = {numpy: name for name, _, numpy, _ in _DTYPES if numpy}
# Start of what torch.save writes of a storage in its old form: a mark and a version.
TORCH_SAVE = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
# Python's complaints about a value of another form.
_WRONG_FORM = (TypeError, ValueError, AttributeError, LookupError)


class Storage(NamedTuple):
    """Numbers of one dtype, still as the pickle holds them."""

    contents: Any  # see `_as_bytes`
    start: int  # in bytes, of the first number
    dtype: str
    elements: int

    @property
    def nbytes(self) -> int:
        return self.elements * BYTES[self.dtype]


class Tree:
    """Converts values and collects their storages.

    A place (in errors) is the keys that lead to a value.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._numbers: dict[tuple[int, str], int] = {}  # id of contents, use -> storage's position
        self._count = self._depth = 0

    def value(self, value: Any, place: str = WHOLE) -> Any:
        """A value and all that it contains.

        Raises:
            FileError: it contains itself, too much, or something of an impossible form.
        """
        self._count += 1
        if self._count > VALUES:
            raise FileError(f"holds more than {VALUES} values, far more than a network. {REMEDY}")
        self._depth += 1
        if self._depth > DEPTH:
            raise FileError(f"{place[:200]} holds itself, or values too deep in it. {REMEDY}")
        converted = self._convert(value, place)
        self._depth -= 1
        return converted

    def _convert(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            if value.bit_length() > LONGEST_INTEGER:
                raise FileError(f"{place} is an integer of {value.bit_length()} bits. {REMEDY}")
            return value
        if isinstance(value, str) and len(value) <= LONGEST_TEXT:
            return value
        if isinstance(value, list | tuple | set | frozenset):
            return ["list", [self.value(item, place) for item in value]]
        if isinstance(value, dict):
            return ["dict", self._entries(value, place)]
        if isinstance(value, Record):
            return self._record(value, place)
        named = isinstance(value, type) and issubclass(value, Record)
        return ["object", value.kind if named else f"builtins.{type(value).__name__}", {}]

    def _entries(self, entries: Any, place: str) -> dict[str, Any]:
        if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
            raise FileError(f"{place} should be a dict with texts as keys, but has another form")
        return {key: self.value(value, _inside(place, key)) for key, value in entries.items()}

    def _record(self, record: Record, place: str) -> Any:
        kind, arguments = record.kind, record.arguments
        if kind == PERSISTENT_CLASS:
            return self._persistent_object(record, place)
        if kind in DICTS and not arguments:
            return ["dict", self._entries(record.entries, place)]
        if kind == SET or kind in PARAMETERS:
            return self.value(arguments[0] if arguments else None, place)
        if kind == TENSOR:
            return self._tensor(record, place)
        if kind in (NUMPY_SCALAR, NUMPY_RECONSTRUCT, NUMPY_FROMBUFFER):
            try:
                return self._array(record)
            except _WRONG_FORM:  # objects, texts or structures, or damaged
                return ["object", kind, {}]
        return ["object", kind, self._entries(record.state or {}, place)]

    def _persistent_object(self, record: Record, place: str) -> Any:
        """An object of a persistent class; the source of the class is not looked at."""
        try:
            (meta,) = record.arguments
            name = meta["class_name"]
            if meta["type"] != "class" or not re.fullmatch(r"\w{1,64}", name, re.ASCII):
                raise ValueError
            state = meta["state"]
        except _WRONG_FORM:
            raise FileError(f"{place} should be an object of a persistent class") from None
        if not isinstance(state, dict):
            raise FileError(f"{place}: its state should be a dict, but has another form")
        return ["object", name, self._entries(state, place)]

    def _tensor(self, record: Record, place: str) -> Any:
        try:
            source, offset, shape, stride = record.arguments[:4]
            if source.kind != STORAGE or len(shape) != len(stride) or len(shape) > 8:
                raise ValueError
            _check_sizes((offset, *shape, *stride))
            (contents,) = source.arguments
        except _WRONG_FORM:
            raise FileError(f"{place} should be a tensor, but has another form") from None
        number = self._number(contents, "torch", lambda: _read_storage(contents, place))
        elements = self.storages[number].elements
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        if max(last + 1, math.prod(shape)) > elements:
            raise FileError(f"{place} wants more than its storage's {elements} elements")
        return self._view(number, offset, shape, stride)

    def _array(self, record: Record) -> Any:
        shape: Sequence[int] = ()
        in_columns = False
        if record.kind == NUMPY_SCALAR:
            dtype, contents = record.arguments
        elif record.kind == NUMPY_RECONSTRUCT:
            _, shape, dtype, in_columns, contents = record.state
        else:
            contents, dtype, shape, order = record.arguments
            in_columns = {"C": False, "F": True}[order]
        (code, *_), (_, byte_order, *_) = dtype.arguments, dtype.state
        if byte_order not in ("<", "|") or len(shape) > 8:
            raise ValueError
        _check_sizes(shape)
        storage = Storage(contents, 0, NUMPY_DTYPES[code], math.prod(shape))
        if len(_as_bytes(contents)) != storage.nbytes:
            raise ValueError
        number = self._number(contents, code, lambda: storage)
        stride, step = [], 1
        for n in shape if in_columns else reversed(shape):
            stride.append(step)
            step *= n
        return self._view(number, 0, shape, stride if in_columns else stride[::-1])

    def _number(self, contents: Any, use: str, read: Callable[[], Storage]) -> int:
        """The position of a storage, which is read if it was not met before."""
        key = id(contents), use
        if key not in self._numbers:
            self.storages.append(read())
            self._numbers[key] = len(self.storages) - 1
        return self._numbers[key]

    def _view(self, number: int, offset: int, shape: Iterable[int], stride: Iterable[int]) -> Any:
        storage = self.storages[number]
        layout = [offset, list(shape), list(stride)]
        return ["tensor", str(number), storage.dtype, storage.nbytes, *layout]


def _inside(place: str, key: str) -> str:
    """The place under a key, without torch's own `_modules` and the like."""
    if key.startswith("_"):
        return place
    name = key if re.fullmatch(r"[\w.]{1,64}", key, re.ASCII) else ascii(key[:64])
    return name if place == WHOLE else f"{place}.{name}"


def _check_sizes(sizes: Iterable[Any]) -> None:
    if not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
        raise ValueError


def _as_bytes(value: Any) -> bytes | bytearray:
    """Bytes, however the pickle's protocol holds them; else one of Python's complaints."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):  # Python 2's, see `RestrictedUnpickler`
        return value.encode("latin-1")
    text, encoding = value.arguments  # protocol 2 has texts of the characters 0 to 255 instead
    if value.kind != ENCODE or encoding != "latin1":
        raise ValueError
    return text.encode("latin-1")


def _read_storage(contents: Any, place: str) -> Storage:
    """What torch.save writes of a storage in its old form; nothing else passes.

    That is five pickles, the number of elements and the elements.
    """
    try:
        raw = _as_bytes(contents)
        file = io.BytesIO(raw)
        if file.read(len(TORCH_SAVE)) != TORCH_SAVE:
            raise ValueError
        system = RestrictedUnpickler(file, ()).load()
        storage = RestrictedUnpickler(file, {PERSISTENT_ID, *TORCH_STORAGES}).load()
        keys = RestrictedUnpickler(file, ()).load()
        (kind, storage_type, key, _, elements, view) = storage.arguments[0]
        dtype = TORCH_STORAGES[storage_type.kind]
        file.seek(8, io.SEEK_CUR)  # the number of elements again
        is_one_storage = (
            system["little_endian"] is True
            and (storage.kind, kind, view) == (PERSISTENT_ID, "storage", None)
            and keys == [key]
            and type(elements) is int
            and len(raw) - file.tell() == elements * BYTES[dtype]
        )
        if not is_one_storage:
            raise ValueError
    except FileError as error:
        raise FileError(f"{place}: its storage: {error}") from None
    except (*_WRONG_FORM, pickle.UnpicklingError, EOFError):
        expected = "should be a storage as torch.save writes it"
        raise FileError(f"{place}: its storage {expected}, but has another form") from None
    return Storage(contents, file.tell(), dtype, elements)


def write_storages(file: BinaryIO, storages: Sequence[Storage]) -> None:
    """Writes the storages as safetensors, one after the other, named by their numbers."""
    # Each begins at a multiple of its dtype's size if the largest dtypes come first.
    numbered = sorted(enumerate(storages), key=lambda item: -BYTES[item[1].dtype])
    header, end = {}, 0
    for number, storage in numbered:
        begin, end = end, end + storage.nbytes
        layout = {"dtype": storage.dtype, "shape": [storage.elements], "data_offsets": [begin, end]}
        header[str(number)] = layout
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, storage in numbered:
        file.write(memoryview(_as_bytes(storage.contents))[storage.start :])
