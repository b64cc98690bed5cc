"""Data sets for tests."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sid_scale.data.shards import Shard
from sid_scale.data.writing import write_shards

SHAPE = (2, 1, 2)


def write(folder: Path, count: int, shard_samples: int, dtype: str = "float32") -> Path:
    """Samples that carry their number, so that they can be told apart."""
    samples = ((f"{i:06d}", np.full(SHAPE, i), i % 7) for i in range(count))
    write_shards(folder, samples, codec={}, num_classes=7, shard_samples=shard_samples, dtype=dtype)
    return folder


def put_value(folder: Path, name: str, keys: Iterable[str], value: float) -> None:
    """Puts a value into float32 samples of a shard, and makes the index believe the shard."""
    path = folder / name
    content = bytearray(path.read_bytes())
    for key in keys:
        place = content.index(f"{key}.npy".encode()) + 512 + 128
        content[place : place + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    index = json.loads((folder / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        if shard["name"] == name:
            index["shards"][number] = dataclasses.asdict(Shard.of(path, shard["samples"]))
    (folder / "index.json").write_text(json.dumps(index))
