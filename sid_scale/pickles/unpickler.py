"""A `pickle.Unpickler` that runs nothing: it makes plain data and inert records.

A pickle is a program: it names functions and classes, and has them called. Here no name is looked
up. A name of a short list becomes a class of records, any other name ends the reading.
"""

import functools
import pickle
from collections.abc import Collection
from typing import Any, BinaryIO

PERSISTENT_CLASS = "torch_utils.persistence._reconstruct_persistent_obj"
# Stands in a list of names for a reference to data that is not in the pickle.
PERSISTENT_ID = "a persistent id (data beside the pickle, as in torch.save's files)"
DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
SET = "builtins.set"
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TENSOR = "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"
NUMPY_SCALAR = "numpy.core.multiarray.scalar"
NUMPY_RECONSTRUCT = "numpy.core.multiarray._reconstruct"
NUMPY_FROMBUFFER = "numpy.core.numeric._frombuffer"
ENCODE = "_codecs.encode"
# Every name that a file may ask for. `tree.py` leaves out what it does not interpret.
ALLOWED = frozenset(
    {
        *{PERSISTENT_CLASS, *DICTS, SET, *PARAMETERS, TENSOR, STORAGE, ENCODE},
        *{NUMPY_SCALAR, NUMPY_RECONSTRUCT, NUMPY_FROMBUFFER, "numpy.dtype", "numpy.ndarray"},
        *{f"torch.nn.modules.container.{n}" for n in ("ModuleDict", "ModuleList", "Sequential")},
        *{"torch.nn.modules.linear.Identity", "torch.Size", "torch.device", "builtins.bytearray"},
        *{f"torch.{dtype}" for dtype in ("float64", "float32", "float16", "bfloat16")},
        *{f"torch.{dtype}" for dtype in ("int64", "int32", "uint8", "bool")},
        # Pickle names the first module in which it finds a memory format.
        *{f"{module}.channels_last" for module in ("torch", "torch.torch", "torch._utils.torch")},
    }
)
# Names by which other versions of Python and numpy know the same things.
_ALIASES = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins."}
REMEDY = "Take the file from its publisher"


class FileError(Exception):
    """The file cannot be used; the message says why and what to do."""


class Record:
    """An object that a pickle asks for: the call that makes it, and what is then set on it."""

    kind = ""  # the name of the function or class
    arguments: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]

    def __new__(cls, *arguments: Any) -> "Record":
        self = super().__new__(cls)
        self.arguments, self.state, self.entries = arguments, None, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


@functools.cache
def record_class(kind: str) -> type[Record]:
    """The class of the records of one name, which a pickle gets in place of what it names."""
    return type(kind, (Record,), {"kind": kind})


class RestrictedUnpickler(pickle.Unpickler):
    """Reads the pickle at a file's position.

    Args:
        file: seekable.
        allowed: names that may occur, as "module.name".
    """

    def __init__(self, file: BinaryIO, allowed: Collection[str] = ALLOWED):
        # Python 2 has one type for texts and bytes: each byte becomes the character of its number.
        super().__init__(file, encoding="latin1")
        self._allowed = set(allowed)

    def find_class(self, module: str, name: str) -> type[Record]:
        """A class of records.

        Raises:
            FileError: the name is not on the list.
        """
        kind = asked = f"{module}.{name}"
        for alias, usual in _ALIASES.items():
            if asked.startswith(alias):
                kind = usual + asked.removeprefix(alias)
        if kind not in self._allowed:
            raise _refusal(ascii(asked[:200]))
        return record_class(kind)

    def persistent_load(self, pid: Any) -> Record:
        """A record of a persistent id. A pickle may have one, if any."""
        if PERSISTENT_ID not in self._allowed:
            raise _refusal(PERSISTENT_ID)
        self._allowed.remove(PERSISTENT_ID)
        return record_class(PERSISTENT_ID)(pid)


def _refusal(asked: str) -> FileError:
    needless = "which no published network or reference needs. Nothing was run"
    return FileError(f"asks for {asked}, {needless}. {REMEDY}")
