"""What hostile files are made with; the files are in `hostile_code.py` and `hostile_sizes.py`.

Each is a function that gets the path of a canary and returns the file's bytes. Where code is
smuggled in, it would make the canary; those marked `live` do so when Python's own pickle reads
them.
"""

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.networks.edm2.published import tiny
from tests.networks.published import published_code

SHAPE, STRIDE, ELEMENTS = (3, 16, 3, 3), (144, 9, 3, 1), 432  # of the last convolution


@dataclass(frozen=True)
class HostileFile:
    """A file and what becomes of it."""

    make: Callable[[Path], bytes]
    complaint: str  # what the error says
    live: bool


FILES: dict[str, HostileFile] = {}


def hostile(complaint: str, *, live: bool = False):
    """Registers a file under the name of the function that makes it."""

    def register(make: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
        assert make.__name__ not in FILES
        FILES[make.__name__] = HostileFile(make, complaint, live)
        return make

    return register


class Call:
    """Pickles as a call of a function, which may be the result of another call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self):  # pickle wants functions to be callable
        raise AssertionError


def dumps(contents: Any, protocol: int = 4) -> bytes:
    """A pickle that may hold objects of published classes."""
    with published_code():
        return pickle.dumps(contents, protocol)


def with_weight(value: Any) -> bytes:
    """A network with something else in place of the last convolution's weight."""
    made = tiny()
    made.unet.out_conv._parameters["weight"] = value
    return dumps({"ema": made})


def with_storage(contents: Any, offset: Any = 0, shape: Any = SHAPE, stride: Any = STRIDE) -> bytes:
    """A network with something else in place of a weight's storage."""
    return with_weight(tensor_of(contents, shape, stride, offset))


def tensor_of(contents: Any, shape: Any, stride: Any, offset: Any = 0) -> Call:
    """A tensor over a storage that `contents` should hold."""
    storage = Call(torch.storage._load_from_bytes, contents)
    parts = (storage, offset, tuple(shape), stride, False, {})
    return Call(torch._utils._rebuild_tensor_v2, *parts)


def saved(contents: Any, *, zipped: bool = False) -> bytes:
    """What torch.save writes, in its old form or its new one."""
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def saved_storage(elements: int = ELEMENTS) -> bytes:
    """A storage of float32 as it lies in published files."""
    _, (contents,) = torch.zeros(elements)._typed_storage().__reduce__()
    return contents


def touch(canary: Path) -> str:
    """A command that makes the canary."""
    return f"touch '{canary}'"


def code(canary: Path) -> str:
    """Python that makes the canary."""
    return f"open({str(canary)!r}, 'w').close()"


def opcodes(*parts: bytes | str | int) -> bytes:
    """A pickle of protocol 4 spelt out: opcodes as bytes, texts and small integers as such."""
    spelt = [pickle.PROTO + b"\x04"]
    for part in parts:
        if isinstance(part, str):
            part = pickle.BINUNICODE + struct.pack("<I", len(part.encode())) + part.encode()
        elif isinstance(part, int):
            part = pickle.BININT + struct.pack("<i", part)
        spelt.append(part)
    return b"".join(spelt)


def named(name: str) -> bytes:
    """The opcode that asks for "module name"."""
    return pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n"
