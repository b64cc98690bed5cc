"""Shards of what needs no VAE: latents that are ready, as EDM2's archives hold them, and pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sid_scale.codecs import Codec, IdentityCodec, VAECodec
from sid_scale.data.prepare.build import ShardBuild
from sid_scale.data.prepare.images import centre_crop
from sid_scale.data.prepare.plan import Plan, describe_source, shard_count, shuffled
from sid_scale.data.prepare.raw_samples import Raw, Source, SourcePart
from sid_scale.data.prepare.refusals import Refusals
from sid_scale.data.prepare.shard_writer import Sample, SampleFormat
from sid_scale.data.shards import PIXELS, ShardError
from sid_scale.process_pool import over_processes

AT_ONCE = 100  # samples that are listed to find one that is sound


@dataclass(frozen=True)
class Packing:
    """How samples are packed.

    Args:
        dtype: of latents; None: the codec's usual one. Pixels have their own.
        resolution: images are cropped to it; None if they all have one shape.
        codec: of latents; pixels have their own.
    """

    shard_bytes: int
    dtype: str | None
    seed: int
    resolution: int | None
    codec: Codec


def plan_packing(source: Source, packing: Packing) -> Plan:
    """What packing a source will make. Its first sound sample is read, for its shape.

    Raises:
        SidScaleError: all samples are damaged, or no latents of that codec.
    """
    raw, stored = _first_sound(source, packing.resolution)
    codec: Codec = IdentityCodec()
    if source.kind == "latents":
        codec = packing.codec
        _check_channels(raw, stored, codec)
    else:
        _check_image(raw, stored, packing.dtype)
    dtype = packing.dtype or codec.stored_dtypes[0]
    sample_format = SampleFormat(stored.shape, dtype, source.num_classes)
    return Plan(
        source=describe_source(source),
        transform={"centre_crop": packing.resolution} if packing.resolution else {},
        seed=packing.seed,
        samples=len(source),
        shards=shard_count(len(source), sample_format, packing.shard_bytes),
        format=sample_format,
        codec=codec.describe(),
    )


def _check_channels(raw: Raw, stored: np.ndarray, codec: Codec) -> None:
    """Compares the first latents with the codec that is to have made them.

    Raises:
        ShardError: it has not.
    """
    if not isinstance(codec, VAECodec):
        raise ShardError(
            f"{raw.where}: latents, but --codec describes a network of pixels; give the codec that "
            "made them, or images as the source"
        )
    if 2 * len(codec.scale) != stored.shape[0] or 2 * len(codec.bias) != stored.shape[0]:
        raise ShardError(
            f"{raw.where}: shape {stored.shape}, but the codec has {len(codec.scale)} "
            "channels, each with a mean and a std; give --codec to describe another"
        )


def _check_image(raw: Raw, stored: np.ndarray, dtype: str | None) -> None:
    """Whether the first image can be one of a network's.

    Raises:
        ShardError: it is no square, or is to be stored as something else than it is.
    """
    _, height, width = stored.shape
    if height != width:
        raise ShardError(
            f"{raw.where}: {width}x{height} pixels; networks of pixels take squares of the "
            "teacher's size: --resolution R crops all images to R x R"
        )
    if dtype is not None:
        raise ShardError(
            f"{raw.where}: an image, whose pixels are stored as {PIXELS}: --dtype is for latents"
        )


def _first_sound(source: Source, resolution: int | None) -> tuple[Raw, np.ndarray]:
    """The first sample that can be read, as it is stored."""
    refusals = Refusals(leave_out=True)
    for first in range(0, len(source), AT_ONCE):
        with source.part(np.arange(first, min(first + AT_ONCE, len(source)))).open() as raws:
            for raw in raws:
                sample = refusals.attempt(raw, partial(stored_sample, raw, resolution))
                if sample is not None:
                    return raw, sample.stored
    last = refusals.found[-1]
    raise ShardError(f"all samples are refused, {last.where} for one: {last.why}")


def pack(source: Source, making: ShardBuild, workers: int) -> Iterator[int]:
    """Makes a folder's shards, over processes; yields how many samples each one holds.

    Raises:
        ShardError: a shard cannot be written. What is refused is for `ShardBuild.check_refused`.
        WorkerError: a worker was killed.
    """
    order = shuffled(source, making.plan.seed)
    tasks = (
        _Task(making, number, source.part(order[making.plan.positions(number)]))
        for number in making.mine
    )
    yield from over_processes(_pack_shard, tasks, workers)


def stored_sample(raw: Raw, resolution: int | None) -> Sample:
    """A sample as a shard stores it: latents, or an image as IdentityCodec does.

    Raises:
        SidScaleError: it is damaged.
    """
    array = raw.load()
    if array.dtype == np.uint8:
        pixels = array if resolution is None else centre_crop(array, resolution)
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        array = IdentityCodec().encode(image)[0].numpy()
    return Sample(raw.key, array, raw.entry.label)


@dataclass(frozen=True)
class _Task:
    making: ShardBuild
    number: int
    part: SourcePart


def _pack_shard(task: _Task) -> int:
    def records(refusals: Refusals) -> Iterator[dict[str, Any]]:
        with task.part.open() as raws:
            for raw in raws:
                record = refusals.attempt(raw, partial(_record, task.making.plan, raw))
                if record is not None and not refusals.stop:
                    yield record

    return task.making.make(task.number, records)


def _record(plan: Plan, raw: Raw) -> dict[str, Any]:
    return plan.format.record(stored_sample(raw, plan.transform.get("centre_crop")))
