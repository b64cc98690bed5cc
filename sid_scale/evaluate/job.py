"""One evaluation of one sampler, from trying it out to metrics.json."""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sid_scale.evaluate.blocks import BlockStore, blocks_of
from sid_scale.evaluate.detectors import DetectorFiles, Detectors, open_detectors
from sid_scale.evaluate.engine import Stopwatch, make_blocks
from sid_scale.evaluate.features import FEATURES, FRECHET, MetricError
from sid_scale.evaluate.metrics.from_features import figures_of
from sid_scale.evaluate.references.files import Reference, find_references
from sid_scale.evaluate.results import (
    METRICS_FILE,
    read_finished,
    repeat_figures,
    tell,
    write_metrics,
)
from sid_scale.evaluate.samplers import Sampler, check_seeds
from sid_scale.evaluate.trial import smoke_test
from sid_scale.ranks import Ranks, on_first_rank


@dataclass(frozen=True)
class Job:
    """A sampler, and what is to be known of the network behind it."""

    sampler: Sampler
    out: Path
    network: dict[str, Any]  # as metrics.json has it
    made_by: dict[str, Any]  # all that latents depend on besides seed and class
    codec: dict[str, Any]  # all that images depend on besides latents


def run_evaluation(job: Job, options: argparse.Namespace, ranks: Ranks) -> None:
    """Evaluates one sampler into one folder. Collective.

    Raises:
        SidScaleError: a file is missing, damaged or of something else, before any sampling; or
            what the network makes is not finite.
    """
    began = time.perf_counter()
    metrics = options.metrics
    check_seeds(options.first_seed, options.num * options.repeats)
    files = DetectorFiles(options.inception, options.dinov2)
    detectors = open_detectors(metrics, files, ranks.device)
    references = find_references(metrics, options.reference)
    sizes = smoke_test(job.sampler, detectors, references)
    store = BlockStore(job.out)
    recipe = {"made_by": job.made_by, "codec": job.codec, "detectors": detectors.hashes}
    on_first_rank(lambda: store.claim(recipe))
    if _is_finished(job.out, options, references, ranks):
        return
    if ranks.is_first:
        for line in warnings_of(metrics, options.num, sizes):
            print(f"warning: {line}")

    firsts = [options.first_seed + number * options.num for number in range(options.repeats)]
    repeats = [blocks_of(first, options.num) for first in firsts]
    blocks = [block for repeat in repeats for block in repeat]
    watch = make_blocks(job.sampler, detectors.extract, blocks, store, ranks)
    assert watch is not None  # nobody stops it
    each = [figures_of(metrics, references, store, repeat, ranks) for repeat in repeats]
    _refuse_nan(each, job.network["path"])
    seconds = gather_seconds(watch, ranks)

    if ranks.is_first:
        if options.save_features:
            store.save_features(blocks, {m: FEATURES[m] for m in metrics}, job.out)
        measured = {
            **repeat_figures(each),
            **_circumstances(job, options, detectors, references, ranks),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_by_rank": seconds,
        }
        write_metrics(job.out, measured)
        store.remove()
        tell(measured)


def warnings_of(metrics: Sequence[str], num: int, sizes: Mapping[str, int]) -> list[str]:
    """What to know of figures from so few samples."""
    return [
        f"{metric}: {num} images for {sizes[FEATURES[metric]]} features leave the covariance "
        "singular; the distance comes out too large by much"
        for metric in metrics
        if metric in FRECHET and num <= sizes[FEATURES[metric]]
    ]


def gather_seconds(watch: Stopwatch, ranks: Ranks) -> dict[str, list[float]]:
    """Stage -> seconds of each rank. Collective."""
    told: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(told, watch.seconds)
    return {stage: [round(seconds[stage], 2) for seconds in told] for stage in watch.seconds}


def _is_finished(
    out: Path, options: argparse.Namespace, references: Mapping[str, Reference], ranks: Ranks
) -> bool:
    """Whether what is asked for lies in `out` already; it is then told. Collective."""
    asked = {
        "num": options.num,
        "first_seed": options.first_seed,
        "repeats": options.repeats,
        "references": {metric: r.sha256 for metric, r in references.items()},
    }
    finished = on_first_rank(
        lambda: read_finished(out, options.metrics, asked, options.save_features)
    )
    if finished is not None and ranks.is_first:
        print(f"{out / METRICS_FILE} is there already:")
        tell(finished)
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
    seen_by = {metric: detectors.files.get(FEATURES[metric]) for metric in options.metrics}
    return {
        "num": options.num,
        "first_seed": options.first_seed,
        "references": {m: {"file": r.file, "sha256": r.sha256} for m, r in references.items()},
        "detectors": {m: {"file": f[0], "sha256": f[1]} for m, f in seen_by.items() if f},
        "network": job.network,
        "settings": {
            "dtype": options.dtype,
            "vae_dtype": job.codec.get("vae_dtype"),
            "ranks": ranks.world_size,
            "device": ranks.device.type,
            "batch": job.sampler.batch,
        },
    }
