"""What the records of a pickled network mean: dicts, numbers, tensors.

A record says which function its writer would have called, and with what. Here each kind that
EDM2's files need is understood from those words; none of the functions is called. torch's own
restricted loader, which would allocate whatever it is asked for, gets a tensor's storage once its
bytes have been found to be of the one form that storages have.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sid_scale.pickles.opcodes import PickleError, Span
from sid_scale.pickles.reader import PERSISTENT_ID, Record, read_pickle

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
IDENTITY = "torch.nn.modules.linear.Identity"
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
DTYPES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
# What numpy's arrays and numbers are made with; `_codecs.encode` makes bytes of a text.
NUMPY = frozenset(
    {
        *{"numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "_codecs.encode"},
        *{"numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer"},
    }
)
# Every name that a network's pickle may ask for. Those that nothing below interprets occur in
# attributes that nobody reads.
ALLOWED = NUMPY | frozenset(
    {
        *{PERSISTENT, *DICTS, "builtins.set"},
        *{f"torch.nn.modules.container.{kind}" for kind in CONTAINERS},
        *{*PARAMETERS, "torch._utils._rebuild_tensor_v2", IDENTITY, "builtins.bytearray"},
        *{"torch.storage._load_from_bytes", "torch.Size", "torch.device"},
        *{str(dtype) for dtype in DTYPES.values()},
        *{"torch.float64", "torch.int64", "torch.int32", "torch.uint8", "torch.bool"},
        # A memory format lies in whichever module pickle finds it first.
        *{f"{module}.channels_last" for module in ("torch", "torch.torch", "torch._utils.torch")},
    }
)
_HEADER_OPCODES = 200  # in each pickle before a storage's elements; torch takes 26
_LONGEST_NUMBERS = 1024  # bytes
# Python's complaints about a value of another form, and what torch adds to them.
_WRONG_FORM = (TypeError, ValueError, AttributeError, KeyError, IndexError, struct.error)
_TORCHS_REFUSALS = (pickle.UnpicklingError, RuntimeError, EOFError, OverflowError)


@contextmanager
def should_be(expected: str, what: str) -> Iterator[None]:
    """Python's complaints about a value of another form become one PickleError."""
    try:
        yield
    except PickleError:
        raise
    except _WRONG_FORM:
        raise PickleError(f"{what} should be {expected}, but has another form") from None


# --- dicts and numbers --------------------------------------------------------------------


def mapping(value: Any, what: str) -> dict[str, Any]:
    """A dict, plain or of one of the kinds that the files use; `what` is for the error.

    Raises:
        PickleError: it is something else.
    """
    with should_be("a dict", what):
        if isinstance(value, Record):
            if value.kind not in DICTS or value.arguments:
                raise TypeError
            value = value.entries
        if not isinstance(value, dict):
            raise TypeError
        return value


def number(value: Any, what: str) -> int | float:
    """A number or bool, Python's or numpy's.

    Raises:
        PickleError: it is something else.
    """
    if isinstance(value, int | float):
        return value
    with should_be("a number", what):
        if value.kind != "numpy.core.multiarray.scalar":
            raise TypeError
        dtype, contents = value.arguments
        return _numpy_array(_short(contents), dtype).item()


def numbers(value: Any, what: str) -> list[int | float]:
    """Numbers in a list, a tuple or a numpy array of one dimension.

    Raises:
        PickleError: it is something else.
    """
    if isinstance(value, list | tuple):
        return [number(item, what) for item in value]
    with should_be("a list of numbers", what):
        (_,), dtype, _, contents = _array_parts(value)
        return _numpy_array(_short(contents), dtype).tolist()


def array(value: Any, what: str) -> np.ndarray:
    """A numpy array of numbers, of any shape; it takes as much memory as its part of the file.

    Raises:
        PickleError: it is something else, or its shape and its contents contradict each other.
    """
    with should_be("an array of numbers", what):
        shape, dtype, in_columns, contents = _array_parts(value)
        if len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError
        order: Literal["C", "F"] = "F" if in_columns else "C"
        return _numpy_array(_contents(contents), dtype).reshape(shape, order=order)


def _array_parts(value: Any) -> tuple[tuple[Any, ...], Any, bool, Any]:
    """Shape, dtype, whether columns come first, and contents of a numpy array's record."""
    if value.kind == "numpy.core.numeric._frombuffer":
        contents, dtype, shape, order = value.arguments
        return shape, dtype, {"C": False, "F": True}[order], contents
    if value.kind != "numpy.core.multiarray._reconstruct":
        raise TypeError
    _, shape, dtype, in_columns, contents = value.state
    return shape, dtype, bool(in_columns), contents


def _numpy_array(raw: bytes, dtype: Any) -> np.ndarray:
    """A flat array of a numeric dtype: no objects, texts or structures."""
    code, byte_order = dtype.arguments[0], dtype.state[1]
    if not re.fullmatch(r"[biuf][1248]", code) or byte_order not in ("<", ">", "|"):
        raise ValueError
    return np.frombuffer(raw, np.dtype(byte_order + code))


def _short(contents: Any) -> bytes:
    """Bytes of which no network has many."""
    raw = _contents(contents)
    if len(raw) > _LONGEST_NUMBERS:
        raise ValueError
    return raw


def _contents(value: Any) -> bytes:
    """Bytes, however the pickle's protocol holds them."""
    if isinstance(value, Span) and not value.is_text:
        return value.read()
    if isinstance(value, Record) and value.kind == "_codecs.encode":
        # Protocol 2 has no bytes: they are a text of the characters 0 to 255.
        text, encoding = value.arguments
        if encoding != "latin1":
            raise ValueError
        if isinstance(text, Span):
            text = text.read().decode()
        return text.encode("latin-1")
    if not isinstance(value, bytes):
        raise TypeError
    return value


# --- tensors ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A tensor that is still in its file."""

    what: str  # it is called in errors
    storage: Any
    offset: int  # in elements, as `stride`
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def stored_bytes(self) -> int:
        """How much of the file its storage takes, which may be more than the tensor's part."""
        contents = self.storage
        if isinstance(contents, Record):
            contents = contents.arguments[0] if contents.arguments else b""
        if isinstance(contents, Span):
            return contents.length
        return len(contents) if isinstance(contents, bytes | str) else 0

    def load(self) -> Tensor:
        """The tensor: contiguous, on the CPU, in the file's dtype.

        Raises:
            PickleError: its storage is damaged, too small, or holds something else.
        """
        where = f"{self.what}: its storage"
        with should_be("a storage as torch.save writes it", where):
            contents = _contents(self.storage)
            dtype, elements = _read_storage_header(contents, where)
            steps = zip(self.shape, self.stride, strict=True)
            last = self.offset + sum((n - 1) * step for n, step in steps)
            if max(last + 1, math.prod(self.shape)) > elements:
                raise PickleError(f"{self.what} wants more than its storage's {elements} elements")
        try:
            storage = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
            view = torch.empty(0, dtype=dtype).set_(storage, self.offset, self.shape, self.stride)
        except (*_WRONG_FORM, *_TORCHS_REFUSALS) as error:
            raise PickleError(
                f"{where}: torch cannot load it ({type(error).__name__}): the file is damaged, or "
                "memory is short. Take the file from its publisher"
            ) from None
        # What is only a part of a storage would keep all of it in memory.
        return view.contiguous() if view.numel() == elements else view.contiguous().clone()


def _read_storage_header(contents: bytes, where: str) -> tuple[torch.dtype, int]:
    """Dtype and number of elements of what torch.save writes of a storage, in its old form.

    That is five pickles, the number of elements and the elements; nothing else passes.
    """
    file = io.BytesIO(contents)
    magic, version, system = (read_pickle(file, where, (), _HEADER_OPCODES) for _ in range(3))
    types = {f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()}
    storage = read_pickle(file, where, {PERSISTENT_ID, *types}, _HEADER_OPCODES)
    keys = read_pickle(file, where, (), _HEADER_OPCODES)
    (kind, storage_type, key, location, elements, view) = storage.arguments[0]
    dtype = types[storage_type.name]
    (elements_again,) = struct.unpack("<q", file.read(8))
    is_one_storage = (
        (magic, version) == (0x1950A86A20F9469CFC6C, 1001)
        and system["little_endian"] is True
        and (storage.kind, kind, view) == (PERSISTENT_ID, "storage", None)
        and isinstance(key, str)
        and isinstance(location, str)
        and keys == [key]
        and type(elements) is int
        and elements == elements_again
        and len(contents) - file.tell() == elements * dtype.itemsize
    )
    if not is_one_storage:
        raise ValueError
    return dtype, elements


def read_tensor(value: Any, what: str) -> PickledTensor:
    """A tensor or parameter from its record; `what` is for errors.

    Raises:
        PickleError: the record is of something else, or the shape is impossible.
    """
    with should_be("a tensor", what):
        if value.kind in PARAMETERS:
            value = value.arguments[0]
        storage, offset, shape, stride = value.arguments[:4]
        kinds = (value.kind, storage.kind)
        if kinds != ("torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"):
            raise TypeError
        if len(shape) != len(stride) or len(shape) > 8:
            raise ValueError
        if not all(type(n) is int and 0 <= n < 2**31 for n in (offset, *shape, *stride)):
            raise ValueError
        if math.prod(max(n, 1) for n in shape) >= 2**40:
            raise ValueError
        (contents,) = storage.arguments
        return PickledTensor(what, contents, offset, tuple(shape), tuple(stride))
