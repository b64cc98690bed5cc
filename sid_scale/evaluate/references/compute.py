"""Statistics of real images: from `reference`'s options to the file."""

import argparse
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from sid_scale.codecs import Codec, CodecError, VAECodec, fetch_once_a_node, open_codec
from sid_scale.dtypes import torch_dtype
from sid_scale.evaluate.detectors import detector_files, open_detectors
from sid_scale.evaluate.engine import decode, extract_features
from sid_scale.evaluate.features import (
    FDR,
    LATENTS,
    Extract,
    MetricError,
    features_of,
    kind_of,
    need_images,
    needs_real_features,
    needs_statistics,
)
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.evaluate.references.files import ReferenceFile, ReferenceFileError, write_reference
from sid_scale.evaluate.references.real_images import (
    ImageSource,
    RealBatch,
    RealImageError,
    ShardSource,
    open_source,
    sampled,
    spread,
)
from sid_scale.generators.folder import codec_of
from sid_scale.networks.folder import read_description
from sid_scale.ranks import Ranks

MOST_FEATURES = 50_000  # real images whose features are kept


class Looked(NamedTuple):
    """What was seen of real images, by kind of features."""

    sums: dict[str, FeatureStatistics]
    features: dict[str, np.ndarray]  # (N, D), of those images that are kept, in their order
    resolution: int | None  # of the images; None if none were looked at


def make_reference(options: argparse.Namespace, ranks: Ranks) -> None:
    """`reference`: goes through the images, each rank through its share. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    if options.out.exists() and not options.force:
        raise ReferenceFileError(f"{options.out} is there already: --force replaces it")
    metrics = [m for m in options.metrics if needs_statistics(m) or needs_real_features(m)]
    if not metrics:
        raise MetricError(f"metrics: {', '.join(options.metrics)} are compared with nothing")
    if FDR in options.metrics and options.held_out is None:
        raise MetricError(f"{FDR} is relative to held-out real images: name them by --held-out DIR")
    if options.held_out is not None and not any(map(needs_statistics, metrics)):
        raise MetricError(
            f"--held-out serves {FDR} and Fréchet distances, of which --metrics names none"
        )
    source = open_source(options.data, options.crop)
    others = None if options.held_out is None else open_source(options.held_out, options.crop)
    if ranks.is_first:
        for note in (*source.notes, *(others.notes if others else ())):
            print(f"note: {note}", file=sys.stderr)
    detectors = open_detectors(metrics, detector_files(options), ranks.device)
    num = min(options.num or source.count, source.count)
    for count, folder in ((num, options.data), (others.count if others else 2, options.held_out)):
        if count < 2:
            raise RealImageError(f"{folder} holds fewer than two images; statistics need two")
    codec = _codec(source, options.data, options, list(detectors.extract))
    kept = features_of(metric for metric in metrics if needs_real_features(metric))
    looked = _look(source, codec, detectors.extract, kept, num, ranks)
    seen = None
    if others is not None:
        frechet = features_of(metric for metric in metrics if needs_statistics(metric))
        extract = {kind: detectors.extract[kind] for kind in frechet}
        codec = _codec(others, options.held_out, options, list(extract))
        seen = _look(others, codec, extract, (), others.count, ranks)
    if not ranks.is_first:
        return

    moments = {m: looked.sums[kind_of(m)] for m in metrics if needs_statistics(m)}
    about = {
        "data": str(options.data),
        "images": num,
        "through_vae": isinstance(source, ShardSource) and isinstance(codec, VAECodec),
        "resolution": looked.resolution,
        "detectors": detectors.hashes,
    }
    if seen is not None and others is not None:
        about["held_out"] = {
            "data": str(options.held_out),
            "images": others.count,
            "distances": _distances(moments, seen, looked.resolution, options.held_out),
        }
    held = ReferenceFile({m: (s.mean, s.cov) for m, s in moments.items()}, looked.features, about)
    write_reference(options.out, held)
    print(f"{options.out}: {num:,} images of {options.data}, for {', '.join(metrics)}")


def _look(
    source: ShardSource | ImageSource,
    codec: Codec | None,
    extract: dict[str, Extract],
    kept: Collection[str],
    num: int,
    ranks: Ranks,
) -> Looked:
    """Looks at `num` images, evenly spread; of `kept` kinds keeps the features, too. Collective:
    the sums are the first rank's alone, other ranks have those of their share."""
    taken, keeps = spread(source.count, num), spread(source.count, min(num, MOST_FEATURES))
    sums: dict[str, FeatureStatistics] = {}
    numbers: list[np.ndarray] = [np.zeros(0, np.int64)]
    features: dict[str, list[np.ndarray]] = {kind: [] for kind in kept}
    resolution = None
    parts = range(ranks.rank, source.parts, ranks.world_size)
    for part in tqdm(parts, unit="part", disable=not ranks.is_first):
        for batch in source.read(part, taken):
            images, latents = _tensors(codec, batch, list(extract), ranks.device)
            resolution = resolution if images is None else images.shape[-1]
            seen = extract_features(extract, images, latents)
            for kind, values in seen.items():
                so_far = sums.get(kind, FeatureStatistics.empty(values.shape[1]))
                sums[kind] = so_far + FeatureStatistics.of(values)
            if kept:
                chosen = np.array([keeps(int(n)) for n in batch.numbers])
                numbers.append(batch.numbers.numpy()[chosen])
                for kind in kept:
                    features[kind].append(seen[kind][chosen])
    share = (sums, np.concatenate(numbers), features, resolution)
    gathered: list[Any] | None = [None] * ranks.world_size if ranks.is_first else None
    dist.gather_object(share, gathered)  # once
    if gathered is None:
        return Looked(sums, {}, resolution)
    order = np.argsort(np.concatenate([part[1] for part in gathered]))
    return Looked(
        {k: _total([part[0][k] for part in gathered if k in part[0]]) for k in extract},
        {k: np.concatenate([x for part in gathered for x in part[2][k]])[order] for k in kept},
        next((part[3] for part in gathered if part[3] is not None), None),
    )


def _codec(
    source: ShardSource | ImageSource, data: Path, options: argparse.Namespace, kinds: list[str]
) -> Codec | None:
    """What turns latents into images or images into latents, if that is needed."""
    codec: Codec | None = None
    if isinstance(source, ShardSource):
        description = dict(source.index.codec)
        if options.vae is not None and description.get("kind") == "vae":
            description["vae"] = str(options.vae.resolve())
        codec = open_codec(description, beside=data)
        if need_images(kinds):
            fetch_once_a_node(codec)
            codec.check()
    elif LATENTS in kinds:
        if options.network is None:
            raise CodecError(
                "fd_latents of images: --network DIR names the network whose codec makes latents "
                "of them"
            )
        codec = codec_of(read_description(options.network), options.network, options.vae)
        fetch_once_a_node(codec)
        codec.check()
    if isinstance(codec, VAECodec):
        codec.dtype = torch_dtype(options.vae_dtype)
        codec.decodes_at_once = options.vae_batch
    return codec


def _tensors(
    codec: Codec | None, batch: RealBatch, kinds: list[str], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Images and latents of a batch, as far as they are looked at."""
    images, latents = batch.images, None
    if images is not None:
        images = images.to(device)
        if LATENTS in kinds:
            assert codec is not None
            batch = batch._replace(stored=codec.encode(images).cpu())
    if batch.stored is not None:
        assert codec is not None
        latents = sampled(codec, batch).to(device)
        if images is None and need_images(kinds):
            images = decode(codec, latents)
    return images, latents


def _total(parts: list[FeatureStatistics]) -> FeatureStatistics:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _distances(
    moments: Mapping[str, FeatureStatistics],
    seen: Looked,
    resolution: int | None,
    folder: Path,
) -> dict[str, float]:
    """Fréchet distances of held-out images, by metric.

    Raises:
        RealImageError: they are of another size than the others, or the same images.
    """
    if None not in (resolution, seen.resolution) and seen.resolution != resolution:
        raise RealImageError(
            f"--held-out {folder}: images of {seen.resolution}x{seen.resolution}, the others are "
            f"{resolution}x{resolution}; --crop SIZE takes the middle of each"
        )
    distances = {}
    for metric, statistics in moments.items():
        distances[metric] = frechet_distance(statistics, seen.sums[kind_of(metric)])
        if not distances[metric] > 1e-9 * np.trace(statistics.cov):
            raise RealImageError(f"--held-out {folder}: for {metric} the same images as the others")
    return distances
