"""Writing shards: samples, checked one by one, into tar files whose bytes depend on nothing else.

A shard gets its name when it is complete and on the disk; a sample that has no place in a data
set is refused by its key.
"""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds

from sid_scale.data.prepare.keys import KEY
from sid_scale.data.shards import (
    DTYPES,
    INDEX,
    Shard,
    ShardError,
    ShardIndex,
    checked_label,
    write_index,
)
from sid_scale.data.tar_layout import sample_stride

BUFFER = 1 << 20  # tarfile writes bits of 10 kB


class Sample(NamedTuple):
    """What a shard stores: its key, what the codec made of it, its class."""

    key: str
    stored: np.ndarray
    label: int


@dataclass(frozen=True)
class SampleFormat:
    """What all samples of a data set have in common; `shape` is that which the codec stores."""

    shape: tuple[int, ...]
    dtype: str
    num_classes: int

    @property
    def stride(self) -> int:
        """What a sample takes in a tar file: two headers, the class, the array behind its own."""
        return sample_stride(self.shape, DTYPES[self.dtype])

    def record(self, sample: Sample) -> dict[str, Any]:
        """A sample, checked and ready for `write_shard`.

        Raises:
            ShardError: it has a bad key, another shape or kind of numbers, a non-finite value or a
                class out of range.
        """
        key, stored, label = sample
        if not np.can_cast(stored.dtype, DTYPES[self.dtype], "same_kind"):
            raise ShardError(f"sample {key!r}: {stored.dtype} cannot be stored as {self.dtype}")
        with np.errstate(over="ignore"):  # an overflow is reported, by its key, just below
            array = np.ascontiguousarray(stored, dtype=DTYPES[self.dtype])
        where = f"sample {checked_key(key)!r}"
        label = checked_label(array, label, self.shape, self.num_classes, where)
        npy = io.BytesIO()
        np.save(npy, array, allow_pickle=False)
        return {"__key__": key, "npy": npy.getvalue(), "cls": b"%d" % label}


class WrittenShard(NamedTuple):
    """A finished shard, and how often each class occurs in it."""

    shard: Shard
    classes: Counter[int]


def shard_name(number: int) -> str:
    """The file name of a data set's shard."""
    return f"shard-{number:06d}.tar"


def write_shard(
    path: Path, records: Iterable[dict[str, Any]], partial: Path | None = None
) -> WrittenShard:
    """Write records, in the order given, as one tar file. The same records give the same bytes.

    Args:
        records: from `SampleFormat.record`; if they raise, there is no file.
        partial: what the file is called until it is complete; must be on the same file system.

    Raises:
        OSError: the file cannot be written.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    classes: Counter[int] = Counter()
    try:
        with open(partial, "wb", buffering=BUFFER) as file:
            with wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for record in records:
                    tar.write(record)
                    classes[int(record["cls"])] += 1
            file.flush()
            os.fsync(file.fileno())  # a file with this name is complete, after a power cut too
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return WrittenShard(Shard.of(path, classes.total()), classes)


def write_shards(
    folder: str | Path,
    samples: Iterable[tuple[str, np.ndarray, int]],
    *,
    codec: dict[str, Any],
    num_classes: int,
    shard_samples: int,
    dtype: str = "float32",
) -> ShardIndex:
    """Write samples, in the order given, as shards of `shard_samples` each (the last may hold
    fewer), then the index. The same samples give the same bytes.

    Args:
        samples: (key, stored, label) triples; the first one sets the shape.
        codec: JSON description of the codec that made them (`Codec.describe`).
        dtype: one of the codec's `stored_dtypes`.

    Raises:
        ShardError: the folder already holds a data set, there are no samples, or one of them
            has a bad or repeated key, another shape, a non-finite value or a class out of range.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise ShardError(f"{folder} already holds a data set; remove it or choose another folder")
    if dtype not in DTYPES or shard_samples < 1:
        raise ShardError(f"{dtype!r} is not among {', '.join(DTYPES)}, or {shard_samples} < 1")
    remaining = _each_key_once(samples)
    first = next(remaining, None)
    if first is None:
        raise ShardError(f"{folder}: there are no samples to write")
    sample_format = SampleFormat(np.shape(first.stored), dtype, num_classes)
    folder.mkdir(parents=True, exist_ok=True)
    remaining = chain([first], remaining)
    shards: list[WrittenShard] = []
    for sample in remaining:
        path = folder / shard_name(len(shards))
        part = chain([sample], islice(remaining, shard_samples - 1))
        shards.append(write_shard(path, map(sample_format.record, part)))
    index = index_of(shards, sample_format, codec)
    write_index(folder, index)
    return index


def index_of(
    shards: Iterable[WrittenShard], sample_format: SampleFormat, codec: dict[str, Any]
) -> ShardIndex:
    """The index of finished shards."""
    shards = list(shards)
    classes = sum((written.classes for written in shards), Counter[int]())
    histogram = tuple(classes[label] for label in range(sample_format.num_classes))
    return ShardIndex(
        sample_format.shape,
        sample_format.dtype,
        sample_format.num_classes,
        histogram,
        codec,
        tuple(written.shard for written in shards),
    )


def checked_key(key: str) -> str:
    """The key, if a shard can hold it.

    Raises:
        ShardError: it cannot.
    """
    if not KEY.fullmatch(key):
        raise ShardError(f"sample {key!r}: a key is up to 90 of A-Z a-z 0-9 _ - /")
    return key


def _each_key_once(samples: Iterable[tuple[str, np.ndarray, int]]) -> Iterator[Sample]:
    keys: set[str] = set()
    for key, stored, label in samples:
        if key in keys:
            raise ShardError(f"sample {key!r}: this key was written before")
        keys.add(key)
        yield Sample(key, stored, label)
