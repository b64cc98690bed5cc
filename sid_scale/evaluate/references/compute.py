"""Statistics of real images: from `reference`'s options to the file."""

import argparse
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from sid_scale.codecs import Codec, CodecError, VAECodec, fetch_once_a_node, open_codec
from sid_scale.dtypes import torch_dtype
from sid_scale.evaluate.detectors import DetectorFiles, open_detectors
from sid_scale.evaluate.engine import decode, extract_features
from sid_scale.evaluate.features import (
    FEATURES,
    FRECHET,
    INCEPTION,
    LATENTS,
    NEIGHBOURS,
    MetricError,
    need_images,
)
from sid_scale.evaluate.metrics.distances import FeatureStatistics
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

MOST_FEATURES = 50_000  # real images that precision and recall look at


def make_reference(options: argparse.Namespace, ranks: Ranks) -> None:
    """`reference`: goes through the images, each rank through its share. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    if options.out.exists() and not options.force:
        raise ReferenceFileError(f"{options.out} is there already: --force replaces it")
    metrics = [m for m in options.metrics if m in FRECHET + NEIGHBOURS]
    if not metrics:
        raise MetricError(f"metrics: {', '.join(options.metrics)} are compared with nothing")
    source = open_source(options.data, options.crop)
    if ranks.is_first:
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
    files = DetectorFiles(options.inception, options.dinov2)
    detectors = open_detectors(metrics, files, ranks.device)
    codec = _codec(source, options, list(detectors.extract))
    num = min(options.num or source.count, source.count)
    if num < 2:
        raise RealImageError(f"{options.data} holds fewer than two images; statistics need two")
    taken, kept = spread(source.count, num), spread(source.count, min(num, MOST_FEATURES))

    sums: dict[str, FeatureStatistics] = {}
    features: list[tuple[np.ndarray, np.ndarray]] = []  # numbers, (n, D)
    resolution = None
    for part in tqdm(
        range(ranks.rank, source.parts, ranks.world_size), unit="part", disable=not ranks.is_first
    ):
        for batch in source.read(part, taken):
            images, latents = _tensors(codec, batch, list(detectors.extract), ranks.device)
            resolution = resolution if images is None else images.shape[-1]
            seen = extract_features(detectors.extract, images, latents)
            for kind, values in seen.items():
                so_far = sums.get(kind, FeatureStatistics.empty(values.shape[1]))
                sums[kind] = so_far + FeatureStatistics.of(values)
            if set(metrics) & set(NEIGHBOURS):
                chosen = np.array([kept(int(n)) for n in batch.numbers])
                features.append((batch.numbers.numpy()[chosen], seen[INCEPTION][chosen]))

    gathered: list[Any] | None = [None] * ranks.world_size if ranks.is_first else None
    dist.gather_object((sums, features, resolution), gathered)  # once
    if gathered is None:
        return
    about = {
        "data": str(options.data),
        "images": num,
        "through_vae": isinstance(source, ShardSource) and isinstance(codec, VAECodec),
        "resolution": next((r for _, _, r in gathered if r is not None), None),
        "detectors": detectors.hashes,
    }
    total = {
        kind: _total([part[kind] for part, _, _ in gathered if kind in part])
        for kind in detectors.extract
    }
    moments = {m: total[FEATURES[m]] for m in metrics if m in FRECHET}
    numbered = [pair for _, pairs, _ in gathered for pair in pairs]
    held = ReferenceFile(
        {m: (s.mean, s.cov) for m, s in moments.items()},
        _in_order(numbered) if numbered else None,
        about,
    )
    write_reference(options.out, held)
    print(f"{options.out}: {num:,} images of {options.data}, for {', '.join(metrics)}")


def _codec(
    source: ShardSource | ImageSource, options: argparse.Namespace, kinds: list[str]
) -> Codec | None:
    """What turns latents into images or images into latents, if that is needed."""
    codec: Codec | None = None
    if isinstance(source, ShardSource):
        description = dict(source.index.codec)
        if options.vae is not None and description.get("kind") == "vae":
            description["vae"] = str(options.vae.resolve())
        codec = open_codec(description, beside=options.data)
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


def _in_order(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Features (N, D) in the order of their images' numbers."""
    numbers, features = (np.concatenate(column) for column in zip(*parts))
    return features[np.argsort(numbers)]
