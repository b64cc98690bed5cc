"""Is a data set what its index says, and are latents what their codec assumes?

Everything is read, and every fault found is reported, not only the first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sid_scale.codecs import SIGMA_DATA, Codec, CodecError, VAECodec, open_codec
from sid_scale.data.shards import (
    INDEX,
    Shard,
    ShardError,
    ShardIndex,
    decode,
    load_index,
    read_shard,
)
from sid_scale.process_pool import over_processes

MOST_OF_A_SHARD = 20  # faults that are reported of one shard
MOST_REPEATED = 5
TOLERANCE = 0.1  # of a channel's mean and std, in stds


@dataclass
class Moments:
    """Sums over samples and pixels, by channel: float64 (C,)."""

    count: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def none(cls, channels: int) -> "Moments":
        return cls(0, np.zeros(channels), np.zeros(channels))

    def add(self, mean: np.ndarray, std: np.ndarray) -> None:
        """A posterior, (C, H, W) each: of its draws, E[x] = mean and E[x^2] = mean^2 + std^2."""
        mean, std = (a.astype(np.float64).reshape(len(a), -1) for a in (mean, std))
        self.count += mean.shape[1]
        self.total += mean.sum(axis=1)
        self.squares += np.einsum("cp,cp->c", mean, mean) + np.einsum("cp,cp->c", std, std)

    def join(self, other: "Moments") -> None:
        self.count += other.count
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    @property
    def mean(self) -> np.ndarray:
        return self.total / max(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0))


class Channel(NamedTuple):
    """A channel of the raw latents, or of pixels: measured, and what the codec assumes."""

    mean: float
    std: float
    assumed_mean: float
    assumed_std: float

    @property
    def is_as_assumed(self) -> bool:
        off = abs(self.mean - self.assumed_mean) / self.assumed_std
        return off <= TOLERANCE and abs(self.std / self.assumed_std - 1) <= TOLERANCE


@dataclass
class Report:
    """What was found in a data set."""

    index: ShardIndex
    faults: list[str] = field(default_factory=list)
    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    channels: list[Channel] = field(default_factory=list)


def check_shards(folder: str | Path, workers: int) -> Iterator[int | Report]:
    """Reads a local data set from end to end, over processes; yields how many samples the index
    says each shard holds as it is done, and last the report.

    Raises:
        ShardError: the index cannot be read.
        WorkerError: a worker was killed.
    """
    folder = Path(folder)
    index = load_index(folder)
    report = Report(index)
    codec, unfit = _codec_of(index)
    moments = Moments.none(_channels(index, codec))
    keys: list[np.ndarray] = [np.empty(0, np.uint64)] * len(index.shards)
    tasks = (_Task(folder, index, codec, number) for number in range(len(index.shards)))
    found: dict[int, list[str]] = {}
    for checked in over_processes(_check_shard, tasks, workers):
        found[checked.number] = checked.faults
        keys[checked.number] = checked.keys
        report.samples += len(checked.keys)
        report.classes += checked.classes
        moments.join(checked.moments)
        yield index.shards[checked.number].samples
    report.faults = [fault for number in sorted(found) for fault in found[number]]
    report.faults += _repeated(folder, index, keys)
    if not report.faults:  # else it would be said twice
        report.faults += _histogram_faults(index, report.classes)
    report.faults += unfit
    if codec and moments.count:
        report.channels, more = _compare_with_codec(codec, moments)
        report.faults += more
    yield report


def verify_shards(folder: str | Path) -> ShardIndex:
    """The index of a local data set, if `check_shards` finds no fault.

    Raises:
        ShardError: it finds some, or the index cannot be read.
    """
    *_, report = check_shards(folder, workers=1)
    assert isinstance(report, Report)
    if report.faults:
        raise ShardError("\n".join(report.faults))
    return report.index


# --- one shard ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    folder: Path
    index: ShardIndex
    codec: Codec | None
    number: int


class _Checked(NamedTuple):
    number: int
    faults: list[str]
    keys: np.ndarray  # hashes, uint64, in stored order
    classes: Counter[int]
    moments: Moments


def _check_shard(task: _Task) -> _Checked:
    shard = task.index.shards[task.number]
    moments = Moments.none(_channels(task.index, task.codec))
    checked = _Checked(task.number, [], np.empty(0, np.uint64), Counter(), moments)
    path = task.folder / shard.name
    try:
        there = Shard.of(path, shard.samples)
    except OSError as error:
        checked.faults.append(f"{path}: cannot be read ({error.strerror}); fetch it again")
        return checked
    if there.bytes != shard.bytes:
        checked.faults.append(f"{path}: {there.bytes} bytes, not {shard.bytes}; fetch it again")
    elif there.sha256 != shard.sha256:
        checked.faults.append(f"{path}: another SHA-256 than in {INDEX}; fetch it again")
    keys: list[int] = []
    try:
        for record in read_shard(task.folder, shard):
            keys.append(_hash(record.key))
            try:
                stored, label = decode(record, task.index)
            except ShardError as error:
                checked.faults.append(str(error))
            else:
                checked.classes[label] += 1
                if task.codec:
                    mean, std = task.codec.posterior(torch.from_numpy(stored)[None])
                    moments.add(mean[0].numpy(), std[0].numpy())
    except ShardError as error:
        checked.faults.append(str(error))
    shown = _at_most(checked.faults, MOST_OF_A_SHARD, f"{path}: faults")
    return checked._replace(faults=shown, keys=np.array(keys, np.uint64))


def _at_most(faults: list[str], most: int, what: str) -> list[str]:
    left = len(faults) - most
    return faults if left <= 0 else [*faults[:most], f"{what}: {left} more"]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


# --- all shards ---------------------------------------------------------------------------


def _repeated(folder: Path, index: ShardIndex, keys: list[np.ndarray]) -> list[str]:
    """Faults of keys that occur more than once."""
    hashes, counts = np.unique(np.concatenate(keys), return_counts=True)
    repeated = hashes[counts > 1]
    places: dict[str, list[str]] = {}
    for number in range(len(keys)):
        for place in np.flatnonzero(np.isin(keys[number], repeated))[:MOST_OF_A_SHARD].tolist():
            shard = index.shards[number]
            for record in islice(read_shard(folder, shard, place), 1):
                places.setdefault(record.key, []).append(shard.name)
    faults = [
        f"{folder}: sample {key!r} is there {len(shards)} times: {', '.join(shards)}"
        for key, shards in places.items()
        if len(shards) > 1
    ]
    return _at_most(faults, MOST_REPEATED, f"{folder}: keys repeated")


def _histogram_faults(index: ShardIndex, classes: Counter[int]) -> list[str]:
    return [
        f"class {label}: {classes[label]} samples, not {expected} as class_histogram says"
        for label, expected in enumerate(index.class_histogram)
        if classes[label] != expected
    ]


def _codec_of(index: ShardIndex) -> tuple[Codec | None, list[str]]:
    """The codec; or faults, if there is none that stores such samples."""
    try:
        codec = open_codec(index.codec)
    except CodecError as error:
        return None, [f"{INDEX}: {error}"]
    if index.dtype not in codec.stored_dtypes:
        return None, [
            f"{INDEX}: {index.dtype} samples, but codec {index.codec['kind']} stores "
            f"{' or '.join(codec.stored_dtypes)}; write the shards again"
        ]
    channels = _channels(index, codec)
    if isinstance(codec, VAECodec) and not len(codec.scale) == len(codec.bias) == channels:
        return None, [f"the codec has {len(codec.scale)} channels, the samples have {channels}"]
    return codec, []


def _channels(index: ShardIndex, codec: Codec | None) -> int:
    """How many channels the raw latents, or pixels, have."""
    per_channel = codec.stored_shape((1, 1, 1))[0] if codec else 1
    return index.sample_shape[0] // per_channel


def _compare_with_codec(codec: Codec, moments: Moments) -> tuple[list[Channel], list[str]]:
    """The channels; and faults, if a VAE's raw latents are not what its codec assumes."""
    channels = len(moments.mean)
    scale, bias = [1.0] * channels, [0.0] * channels
    if isinstance(codec, VAECodec):
        scale, bias = list(codec.scale), list(codec.bias)
    found = [
        Channel(mean, std, 0.0 - b / s, SIGMA_DATA / s)
        for mean, std, s, b in zip(moments.mean, moments.std, scale, bias, strict=True)
    ]
    if not isinstance(codec, VAECodec):  # nothing is assumed of pixels
        return found, []
    return found, [
        f"channel {number}: raw latents of mean {channel.mean:.3f} and std "
        f"{channel.std:.3f}; the codec assumes {channel.assumed_mean:.3f} and "
        f"{channel.assumed_std:.3f}. Another VAE, other images, or another codec?"
        for number, channel in enumerate(found)
        if not channel.is_as_assumed
    ]
