"""One evaluation of one sampler, from trying it out to metrics.json."""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sid_scale.codecs import CodecError, IdentityCodec
from sid_scale.evaluate.blocks import BlockStore, blocks_of
from sid_scale.evaluate.detectors import Detectors, detector_files, open_detectors
from sid_scale.evaluate.engine import Stopwatch, extract_features, make_blocks
from sid_scale.evaluate.features import (
    FDR,
    MetricError,
    check_counts,
    kind_of,
    need_images,
    needs_statistics,
)
from sid_scale.evaluate.metrics.from_features import compute_metrics, fdr_ratios
from sid_scale.evaluate.references.find import (
    Reference,
    check_references,
    find_references,
    real_counts,
)
from sid_scale.evaluate.results import (
    METRICS_FILE,
    print_metrics,
    read_finished,
    repeat_figures,
    write_metrics,
)
from sid_scale.evaluate.samplers import (
    Sampler,
    check_seeds,
    class_histogram,
    describe_histogram,
)
from sid_scale.generators.generator import RGB
from sid_scale.ranks import Ranks, on_first_rank


@dataclass(frozen=True)
class Job:
    """A sampler, and what is to be known of the network behind it."""

    sampler: Sampler
    out: Path
    network: dict[str, Any]  # as metrics.json has it
    inputs: dict[str, Any]  # all that latents depend on besides seed and class
    codec: dict[str, Any]  # all that images depend on besides latents


def smoke_test(
    sampler: Sampler, detectors: Detectors, references: Mapping[str, Reference]
) -> dict[str, int]:
    """Decodes one latent of zeros, if decoded images are wanted, and shows it to all detectors.

    Returns:
        Kind of features -> their number D.

    Raises:
        CodecError: the VAE cannot be found, is damaged, or the network names none.
        DetectorError: a detector cannot be called.
        ReferenceFileError: a reference is of other images or other detectors.
    """
    shape = sampler.architecture.sample_shape
    latents = torch.zeros(1, *shape, device=sampler.device)
    images = None
    if need_images(detectors.extract):
        if isinstance(sampler.codec, IdentityCodec) and shape[0] != RGB:
            raise CodecError(
                f"the network makes {shape[0]} channels, and its folder names no VAE that turns "
                "them into images"
            )
        sampler.codec.load(sampler.device)
        images = sampler.codec.decode(latents)
    features = extract_features(detectors.extract, images, latents)
    sizes = {kind: values.shape[1] for kind, values in features.items()}
    resolution = None if images is None else images.shape[-1]
    check_references(references, sizes, resolution, detectors.hashes)
    return sizes


def open_yardsticks(
    options: argparse.Namespace, ranks: Ranks
) -> tuple[Detectors, dict[str, Reference]]:
    """What the metrics that are asked for need besides images.

    Raises:
        SidScaleError: a file is missing or damaged, there are no such seeds, or too few images.
    """
    check_seeds(options.first_seed, options.num * options.repeats)
    detectors = open_detectors(options.metrics, detector_files(options), ranks.device)
    references = find_references(options.metrics, options.reference)
    check_counts(options.metrics, options.num, real_counts(references))
    return detectors, references


def run_evaluation(job: Job, options: argparse.Namespace, ranks: Ranks) -> None:
    """Evaluates one sampler into one folder. Collective.

    Raises:
        SidScaleError: a file is missing, damaged or of something else, before any sampling; or
            what the network makes is not finite.
    """
    began = time.perf_counter()
    metrics = options.metrics
    detectors, references = open_yardsticks(options, ranks)
    sizes = smoke_test(job.sampler, detectors, references)
    store = BlockStore(job.out)
    label_dim = job.sampler.architecture.label_dim
    histogram = on_first_rank(lambda: class_histogram(options.labels, label_dim))
    inputs = {**job.inputs, "labels": describe_histogram(histogram)}
    recipe = {"inputs": inputs, "codec": job.codec, "detectors": detectors.hashes}
    on_first_rank(lambda: store.claim(recipe))
    if _is_finished(job.out, options, references, ranks):
        return
    if ranks.is_first:
        for line in warnings_of(metrics, options.num, sizes):
            print(f"warning: {line}")

    firsts = [options.first_seed + number * options.num for number in range(options.repeats)]
    repeats = [blocks_of(first, options.num) for first in firsts]
    blocks = [block for repeat in repeats for block in repeat]
    watch = make_blocks(job.sampler, histogram, detectors.extract, blocks, store, ranks)
    assert watch is not None  # nothing stops it
    each = [compute_metrics(metrics, references, store, repeat, ranks) for repeat in repeats]
    _refuse_nan(each, job.network["path"])
    seconds = gather_seconds(watch, ranks)

    if ranks.is_first:
        if options.save_features:
            store.save_features(blocks, {m: kind_of(m) for m in metrics if m != FDR}, job.out)
        figures = repeat_figures(each)
        measured = {
            **figures,
            **({"fdr_ratios": fdr_ratios(figures, references)} if FDR in metrics else {}),
            **_circumstances(job, options, detectors, references, ranks),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_by_rank": seconds,
        }
        write_metrics(job.out, measured)
        store.remove()
        print_metrics(measured)


def warnings_of(metrics: Sequence[str], num: int, sizes: Mapping[str, int]) -> list[str]:
    """What to know of figures from so few samples."""
    return [
        f"{metric}: {num} images for {sizes[kind_of(metric)]} features leave the covariance "
        "singular; the distance comes out too large by much"
        for metric in metrics
        if needs_statistics(metric) and num <= sizes[kind_of(metric)]
    ]


def gather_seconds(watch: Stopwatch, ranks: Ranks) -> dict[str, list[float]]:
    """Stage -> seconds of each rank. Collective."""
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, watch.seconds)
    return {stage: [round(seconds[stage], 2) for seconds in gathered] for stage in watch.seconds}


def _is_finished(
    out: Path, options: argparse.Namespace, references: Mapping[str, Reference], ranks: Ranks
) -> bool:
    """Whether what is asked for is in `out` already; it is then printed. Collective."""

    def look() -> dict[str, Any] | None:
        asked = {
            "num": options.num,
            "first_seed": options.first_seed,
            "repeats": options.repeats,
            "references": {metric: r.sha256 for metric, r in references.items()},
        }
        return read_finished(out, options.metrics, asked, options.save_features)

    finished = on_first_rank(look)
    if finished is not None and ranks.is_first:
        print(f"{out / METRICS_FILE} is there already:")
        print_metrics(finished)
    return finished is not None


def _refuse_nan(each: Sequence[Mapping[str, float]], path: str) -> None:
    for metric in each[0]:
        if not all(math.isfinite(figures[metric]) for figures in each):
            raise MetricError(
                f"{metric}: what {path} makes is not finite (NaN or infinity) for some seeds; the "
                "network is broken, or --dtype too narrow for it"
            )


def _circumstances(
    job: Job,
    options: argparse.Namespace,
    detectors: Detectors,
    references: Mapping[str, Reference],
    ranks: Ranks,
) -> dict[str, Any]:
    """What metrics.json says besides figures."""
    seen_by = {m: detectors.files.get(kind_of(m)) for m in options.metrics}
    return {
        "num": options.num,
        "first_seed": options.first_seed,
        "references": {m: {"file": r.file, "sha256": r.sha256} for m, r in references.items()},
        "detectors": {m: {"file": f[0], "sha256": f[1]} for m, f in seen_by.items() if f},
        "network": job.network,
        "settings": {
            "labels": options.labels if job.sampler.architecture.label_dim else None,
            "dtype": options.dtype,
            "vae_dtype": job.codec.get("vae_dtype"),
            "ranks": ranks.world_size,
            "device": ranks.device.type,
            "batch": job.sampler.batch,
        },
    }
