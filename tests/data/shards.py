"""Data sets for tests."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.shards import PIXELS, Shard

SHAPE = (2, 1, 2)


def write(folder: Path, count: int, shard_samples: int, dtype: str = "float32") -> Path:
    """Samples that carry their number, so that they can be told apart."""
    samples = ((f"{i:06d}", numbered(i, dtype), i % 7) for i in range(count))
    write_shards(folder, samples, codec={}, num_classes=7, shard_samples=shard_samples, dtype=dtype)
    return folder


def numbered(number: int, dtype: str) -> np.ndarray:
    """A sample that carries its number."""
    if dtype == PIXELS:
        return np.broadcast_to(np.array(divmod(number, 256), np.uint8), SHAPE)
    return np.full(SHAPE, number)


def numbers_of(stored: Tensor) -> Tensor:
    """The numbers that samples (N, *SHAPE) carry."""
    if stored.dtype != torch.uint8:
        return stored[:, 0, 0, 0]
    high, low = stored[:, 0, 0].long().unbind(dim=1)
    return 256 * high + low


def put_value(
    folder: Path, name: str, keys: Iterable[str], value: float, dtype: str = "float32"
) -> None:
    """Puts a value into samples of a shard, and makes the index believe the shard."""
    number = np.array(value, dtype).tobytes()
    path = folder / name
    content = bytearray(path.read_bytes())
    for key in keys:
        place = content.index(f"{key}.npy".encode()) + 512 + 128
        content[place : place + len(number)] = number
    path.write_bytes(content)
    _believe(path)


def put_class(folder: Path, name: str, keys: Iterable[str], label: int) -> None:
    """Puts another class of one digit into samples of a shard, as `put_value`."""
    path = folder / name
    content = bytearray(path.read_bytes())
    for key in keys:
        content[content.index(f"{key}.cls".encode()) + 512] = ord(str(label))
    path.write_bytes(content)
    _believe(path)


def as_gnu_tar(path: Path) -> None:
    """Packs a shard as another program might: the same members in GNU tar's format, the array
    first, and another padding."""
    with tarfile.open(path) as source:
        members = [(m.name, source.extractfile(m).read()) for m in source]  # type: ignore
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for cls, npy in zip(members[::2], members[1::2], strict=True):
            for name, content in (npy, cls):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    _believe(path)


def _believe(path: Path) -> None:
    """Makes the index describe a shard as it is now."""
    place = path.parent / "index.json"
    index = json.loads(place.read_text())
    for number, shard in enumerate(index["shards"]):
        if shard["name"] == path.name:
            index["shards"][number] = dataclasses.asdict(Shard.of(path, shard["samples"]))
    place.write_text(json.dumps(index))
