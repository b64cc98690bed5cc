"""Pixel shards as a source."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from sid_scale.codecs import IdentityCodec
from sid_scale.data.prepare.class_labels import ClassCount
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.keys import key_of
from sid_scale.data.prepare.raw_samples import Entry, Raw
from sid_scale.data.shards import PIXELS, ShardIndex, decode, read_index, read_shard

RGB = 3


class PixelShards:
    """The images of pixel shards, in the order of the shards: it is shuffled already,
    and read from end to end, which no other order would be."""

    kind = "images"
    shuffled = True

    def __init__(self, folder: Path, expected: ClassCount | None = None, unlabelled: bool = False):
        self.folder, self.index = folder, read_index(folder)
        is_pixels = self.index.codec == IdentityCodec().describe() and self.index.dtype == PIXELS
        if not is_pixels or self.index.sample_shape[0] != RGB:
            raise SourceError(
                f"{folder} holds {self.index}; of shards, only those of {PIXELS} images in three "
                "colours can be a source"
            )
        if expected and not unlabelled and expected.number != self.index.num_classes:
            raise SourceError(
                f"{folder} holds images of {self.index.num_classes} classes, but {expected.origin} "
                f"has {expected.number}"
            )
        self.unlabelled = unlabelled
        self.num_classes = 0 if unlabelled else self.index.num_classes
        self.classes: list[str] = []
        self.notes: list[str] = []
        digests = "".join(shard.sha256 for shard in self.index.shards)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()

    def __len__(self) -> int:
        return self.index.samples

    def part(self, numbers: np.ndarray) -> "ShardPart":
        return ShardPart(self.folder, self.index, numbers, self.unlabelled)


@dataclass(frozen=True)
class ShardPart:
    """Some neighbours out of pixel shards."""

    folder: Path
    index: ShardIndex
    numbers: np.ndarray
    unlabelled: bool

    @contextmanager
    def open(self) -> Iterator[Iterator[Raw]]:
        runs = np.split(self.numbers, np.flatnonzero(np.diff(self.numbers) != 1) + 1)
        yield chain.from_iterable(self._run(int(run[0]), len(run)) for run in runs)

    def _run(self, first: int, count: int) -> Iterator[Raw]:
        """The samples from number `first` on."""
        for shard in self.index.shards:
            if count and first < shard.samples:
                for record in islice(read_shard(self.folder, shard, first), count):
                    stored, label = decode(record, self.index)
                    load = partial(stored.transpose, 1, 2, 0)
                    entry = Entry(record.key, 0 if self.unlabelled else label, "")
                    yield Raw(
                        key_of(f"{record.key}.png"), entry, f"{record.url}: {record.key}", load
                    )
                count -= min(count, shard.samples - first)
            first = max(0, first - shard.samples)
