"""Shards of what needs no VAE: latents that are ready, as EDM2's archives hold them, and pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sid_scale.codecs import IdentityCodec
from sid_scale.data.prepare.build import RejectedSamples, ShardBuild
from sid_scale.data.prepare.images import centre_crop
from sid_scale.data.prepare.plan import Plan, describe_source, shard_count, shuffled
from sid_scale.data.prepare.raw_samples import Raw, Source, SourcePart
from sid_scale.data.prepare.shard_writer import Sample, SampleFormat
from sid_scale.data.shards import ShardError
from sid_scale.process_pool import over_processes


@dataclass(frozen=True)
class Packing:
    """How samples are packed.

    Args:
        dtype: by default float32 for latents, and float16 for pixels, of which it holds 8 bits
            exactly.
        resolution: images are cropped to it; None if they all have one shape.
        codec: description of the latents' codec; pixels have their own.
    """

    shard_bytes: int
    dtype: str | None
    seed: int
    resolution: int | None
    codec: dict[str, Any]


def plan_packing(source: Source, packing: Packing) -> Plan:
    """What packing a source will make. Its first sample is read, for its shape.

    Raises:
        SidScaleError: the first sample is damaged, or no latents of that codec.
    """
    with source.part(np.array([0])).open() as raws:
        raw = next(raws)
        try:
            stored = stored_sample(raw, packing.resolution).stored
        except ValueError as error:
            raise ShardError(f"{raw.where}: {error}") from error
    if source.kind == "latents":
        codec = packing.codec
        if 2 * len(codec["scale"]) != stored.shape[0] or 2 * len(codec["bias"]) != stored.shape[0]:
            raise ShardError(
                f"{raw.where}: shape {stored.shape}, but the codec has {len(codec['scale'])} "
                "channels, each with a mean and a std; give --codec to describe another"
            )
    else:
        codec = IdentityCodec().describe()
    dtype = packing.dtype or ("float32" if source.kind == "latents" else "float16")
    sample_format = SampleFormat(stored.shape, dtype, source.num_classes)
    return Plan(
        source=describe_source(source),
        transform={"centre_crop": packing.resolution} if packing.resolution else {},
        seed=packing.seed,
        samples=len(source),
        shards=shard_count(len(source), sample_format, packing.shard_bytes),
        format=sample_format,
        codec=codec,
    )


def pack(source: Source, making: ShardBuild, workers: int) -> Iterator[int]:
    """Makes a folder's shards, over processes; yields how many samples each one holds.

    Raises:
        ShardError: a sample is refused, or a shard cannot be written.
        WorkerError: a worker was killed.
    """
    order = shuffled(source, making.plan.seed)
    tasks = (
        _Task(making, number, source.part(order[making.plan.positions(number)]))
        for number in making.mine
    )
    yield from over_processes(_pack_shard, tasks, workers)


def stored_sample(raw: Raw, resolution: int | None) -> Sample:
    """A sample as a shard stores it; pixels through IdentityCodec.

    Raises:
        SidScaleError: it is damaged.
    """
    array = raw.load()
    if array.dtype == np.uint8:
        pixels = array if resolution is None else centre_crop(array, resolution)
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        array = IdentityCodec().encode(image)[0].numpy()
    return Sample(raw.key, array, raw.label)


@dataclass(frozen=True)
class _Task:
    making: ShardBuild
    number: int
    part: SourcePart


def _pack_shard(task: _Task) -> int:
    def records() -> Iterator[dict[str, Any]]:
        rejected = RejectedSamples()
        with task.part.open() as raws:
            for raw in raws:
                with rejected.collected(raw.where):
                    record = task.making.plan.format.record(stored_sample(raw, resolution))
                if not rejected.any:
                    yield record
        rejected.raise_any()

    resolution = task.making.plan.transform.get("centre_crop")
    return task.making.make(task.number, records)
