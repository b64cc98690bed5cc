"""What a data set is to be made of and how: all that its bytes depend on, decided beforehand."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from sid_scale.data.order import permutation
from sid_scale.data.prepare.raw_samples import Source
from sid_scale.data.prepare.shard_writer import SampleFormat
from sid_scale.data.tar_layout import TAR_RECORD

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A data set to make: all that its bytes depend on.

    Args:
        source: JSON; what it is made of.
        transform: JSON; what becomes of a sample on the way, {} for nothing.
        seed: of the shuffle.
        samples: how many there are.
        shards: how many files they are dealt to, evenly.
        codec: as the index describes it. The place of a VAE is none of the plan.
    """

    source: dict[str, Any]
    transform: dict[str, Any]
    seed: int
    samples: int
    shards: int
    format: SampleFormat
    codec: dict[str, Any]

    def positions(self, shard: int) -> slice:
        """Where in the shuffled order a shard's samples stand."""
        begin, end = (self.samples * n // self.shards for n in (shard, shard + 1))
        return slice(begin, end)

    def count(self, shard: int) -> int:
        """How many samples a shard holds."""
        positions = self.positions(shard)
        return positions.stop - positions.start

    @property
    def recipe(self) -> dict[str, Any]:
        """The plan as JSON."""
        fields = dataclasses.asdict(self)
        fields = {"format_version": FORMAT_VERSION, **fields.pop("format"), **fields}
        fields["codec"] = {key: value for key, value in self.codec.items() if key != "vae"}
        return json.loads(json.dumps(fields))  # as it reads back: lists for tuples

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()


def describe_source(source: Source) -> dict[str, Any]:
    """What a plan says of a source; not its place."""
    described = {"kind": source.kind, "samples": len(source), "fingerprint": source.fingerprint}
    return {**described, **({"classes": source.classes} if source.classes else {})}


def shard_count(samples: int, sample_format: SampleFormat, shard_bytes: int) -> int:
    """How many shards of at most so many bytes it takes; a shard holds at least one sample."""
    room = shard_bytes - TAR_RECORD  # which a tar file's end may take
    return -(-samples // max(1, room // sample_format.stride))


def shuffled(source: Source, seed: int, copies: int = 1) -> np.ndarray:
    """Numbers 0 to copies * len(source) - 1 in the order in which shards hold them."""
    size = copies * len(source)
    return np.arange(size) if source.shuffled else permutation(size, seed)
