"""Writing a safetensors file as a stream: tensor by tensor, hashed and flushed on the way.

The library writes a dictionary that is whole in memory. Consolidation never holds more than
one tensor, and a checkpoint wants the checksum of what it wrote without reading it again. The
format is small enough to be written in order: the header's length, the header as JSON, then
the tensors' bytes. Reading is left to the library, which checks all of it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
ALIGNMENT = 8  # bytes: of the header, and so of the data


class Entry(NamedTuple):
    """A tensor announced in the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Written(NamedTuple):
    """A file that is on the disk."""

    bytes: int
    sha256: str


def write_tensors(path: Path, entries: Sequence[Entry], tensors: Iterable[Tensor]) -> Written:
    """Writes `tensors`, announced in the same order by `entries`, and waits for the disk.

    Raises:
        OSError: the disk is full, the folder read-only ...; what was written is left there.
        ValueError: a tensor is not as announced.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:

        def put(data: Any) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)

        put(_header(entries))
        for entry, tensor in zip(entries, tensors, strict=True):
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry} announced, {tensor.dtype} {tuple(tensor.shape)} given")
            put(memoryview(_bytes(tensor)))
        file.flush()
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _header(entries: Sequence[Entry]) -> bytes:
    header, begin = {}, 0
    for entry in entries:
        end = begin + entry.nbytes
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """The tensor's values as a flat array of bytes, without a copy where they are in order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
