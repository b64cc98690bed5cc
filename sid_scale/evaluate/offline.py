"""Evaluating a network folder: from the command line's options to metrics.json."""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sid_scale.classes import parse_numbers
from sid_scale.codecs import Codec, VAECodec
from sid_scale.errors import SidScaleError
from sid_scale.evaluate.arguments import counts_below_one
from sid_scale.evaluate.blocks import BlockStore, blocks_of
from sid_scale.evaluate.detectors import DetectorFiles, open_detectors
from sid_scale.evaluate.engine import Stopwatch, make_blocks
from sid_scale.evaluate.features import FEATURES, MetricError, check_metrics
from sid_scale.evaluate.figures import figures_of
from sid_scale.evaluate.references import find_references
from sid_scale.evaluate.results import (
    METRICS_FILE,
    read_finished,
    repeat_figures,
    tell,
    write_metrics,
)
from sid_scale.evaluate.samplers import (
    GeneratorSampler,
    Sampler,
    TeacherSampler,
    check_guide,
    check_seeds,
    describe_codec,
    describe_network,
    open_teacher,
)
from sid_scale.evaluate.sampling import steps_for
from sid_scale.evaluate.trial import try_out
from sid_scale.generator import DTYPES, OneStepGenerator
from sid_scale.networks.checkpoints import read_description
from sid_scale.ranks import Ranks, joined_ranks, on_first_rank, tell_once


@dataclass(frozen=True)
class Job:
    """A sampler, and what is to be known of the network behind it."""

    sampler: Sampler
    out: Path
    network: dict[str, Any]  # as metrics.json has it
    made_by: dict[str, Any]  # all that latents depend on besides seed and class
    codec: dict[str, Any]  # all that images depend on besides latents


def on_ranks(
    evaluate: Callable[[argparse.Namespace, Ranks], None], options: argparse.Namespace
) -> int:
    """Joins the ranks and evaluates; returns the exit status."""
    try:
        options.metrics = check_metrics(
            [m.strip() for m in options.metrics.split(",") if m.strip()]
        )
        complaint = counts_below_one(options)
        if complaint:
            raise MetricError(complaint)
    except SidScaleError as error:
        tell_once(error)
        return 2
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    with joined_ranks() as ranks:
        try:
            evaluate(options, ranks)
        except KeyboardInterrupt as error:
            raise SidScaleError("interrupted; the same command goes on from here") from error
    return 0


def evaluate_generator(options: argparse.Namespace, ranks: Ranks) -> None:
    """`run`. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    folder = options.generator
    generator = OneStepGenerator.from_pretrained(
        folder, vae=options.vae, dtype=DTYPES[options.dtype], batch_size=options.batch_size
    ).to(ranks.device)
    set_precision(generator.codec, options)
    sampler = GeneratorSampler(generator, options.steps)
    described = describe_network(folder, sampler.architecture)
    made_by = {
        **described,
        "init_sigma": generator.init_sigma,
        "steps": sampler.steps,
        "dtype": options.dtype,
    }
    network = {
        "kind": "generator",
        "path": str(folder),
        "sha256": described["weights_sha256"],
        "images_seen": read_description(folder).origin.get("images_seen"),
        "evaluations": sampler.steps,
        "guidance": None,
    }
    codec = describe_codec(sampler.codec)
    carry_out(Job(sampler, options.out, network, made_by, codec), options, ranks)


def evaluate_teacher(options: argparse.Namespace, ranks: Ranks) -> None:
    """`teacher`, at one number of evaluations or several. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    dtype, folder = DTYPES[options.dtype], options.teacher
    if (options.guide is None) != (options.guidance == 1):
        raise MetricError("--guide DIR and --guidance W (not 1) go together: give both or neither")
    every_steps = _steps_asked_for(options)
    teacher, codec = open_teacher(folder, dtype, options.vae)
    set_precision(codec, options)
    guide = None
    if options.guide is not None:
        guide, _ = open_teacher(options.guide, dtype)
        check_guide(teacher.config, guide.config, options.guide)
    described = describe_network(folder, teacher.config)
    guided_by = None
    if guide is not None:
        guided_by = {
            "guide": str(options.guide),
            "guide_sha256": describe_network(options.guide, guide.config)["weights_sha256"],
            "weight": options.guidance,
        }
    for steps in every_steps:
        sampler = TeacherSampler(
            teacher,
            codec,
            steps,
            guide=guide,
            guidance=options.guidance,
            batch_size=options.batch_size,
            device=ranks.device,
        )
        evaluations = 2 * steps - 1
        network = {
            "kind": "teacher",
            "path": str(folder),
            "sha256": described["weights_sha256"],
            "images_seen": read_description(folder).origin.get("images_seen"),
            "evaluations": evaluations * (1 if guide is None else 2),
            "guidance": guided_by,
        }
        made_by = {
            **described,
            "sampler": {"kind": "heun", "steps": steps},
            "guide_sha256": guided_by and guided_by["guide_sha256"],
            "guidance": options.guidance,
            "dtype": options.dtype,
        }
        out = options.out / str(evaluations) if len(every_steps) > 1 else options.out
        job = Job(sampler, out, network, made_by, describe_codec(codec))
        carry_out(job, options, ranks)


def _steps_asked_for(options: argparse.Namespace) -> list[int]:
    if options.steps is not None:
        if options.steps < 2:
            raise MetricError(f"--steps {options.steps}: the sampler takes two or more")
        return [options.steps]
    try:
        return [steps_for(n) for n in parse_numbers(options.evaluations or "63", "evaluations")]
    except ValueError as error:
        raise MetricError(f"--evaluations {options.evaluations}: {error}") from error


def set_precision(codec: Codec, options: argparse.Namespace) -> None:
    """Lets a VAE compute as the command line says."""
    if isinstance(codec, VAECodec):
        codec.precision = DTYPES[options.vae_precision]
        codec.at_once = options.vae_batch


def carry_out(job: Job, options: argparse.Namespace, ranks: Ranks) -> None:
    """Evaluates one sampler into one folder. Collective.

    Raises:
        SidScaleError: a file is missing, damaged or of something else; before any sampling.
    """
    began = time.perf_counter()
    check_seeds(options.first_seed, options.num * options.repeats)
    files = DetectorFiles(options.inception, options.dinov2)
    detectors = open_detectors(options.metrics, files, ranks.device)
    references = find_references(options.metrics, options.reference)
    sizes = try_out(job.sampler, detectors, references)
    store = BlockStore(job.out)
    recipe = {"made_by": job.made_by, "codec": job.codec, "detectors": detectors.hashes}
    asked = {
        "num": options.num,
        "first_seed": options.first_seed,
        "repeats": options.repeats,
        "references": {metric: r.sha256 for metric, r in references.items()},
    }
    on_first_rank(lambda: store.claim(recipe))
    finished = on_first_rank(
        lambda: read_finished(job.out, options.metrics, asked, options.save_features)
    )
    if finished is not None:
        if ranks.is_first:
            print(f"{job.out / METRICS_FILE} is there already:")
            tell(finished)
        return
    repeats = [
        blocks_of(options.first_seed + r * options.num, options.num) for r in range(options.repeats)
    ]
    blocks = [block for repeat in repeats for block in repeat]
    if ranks.is_first:
        for line in warnings_of(options.metrics, options.num, sizes):
            print(f"warning: {line}")
    watch = make_blocks(job.sampler, detectors.extract, blocks, store, ranks)
    assert watch is not None  # nobody stops it
    each = [figures_of(options.metrics, references, store, part, ranks) for part in repeats]
    seconds = gather_seconds(watch, ranks)
    if ranks.is_first:
        if options.save_features:
            store.save_features(blocks, {m: FEATURES[m] for m in options.metrics}, job.out)
        measured = {
            **repeat_figures(each),
            "num": options.num,
            "first_seed": options.first_seed,
            "references": {m: {"file": r.file, "sha256": r.sha256} for m, r in references.items()},
            "detectors": {
                metric: dict(zip(("file", "sha256"), detectors.files[FEATURES[metric]]))
                for metric in options.metrics
                if FEATURES[metric] in detectors.files
            },
            "network": job.network,
            "settings": {
                "dtype": options.dtype,
                "vae_precision": job.codec.get("vae_precision"),
                "ranks": ranks.world_size,
                "device": ranks.device.type,
                "batch": job.sampler.batch,
            },
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_by_rank": seconds,
        }
        write_metrics(job.out, measured)
        store.remove()
        tell(measured)


def warnings_of(metrics: Sequence[str], num: int, sizes: dict[str, int]) -> list[str]:
    """What to know of figures from so few samples."""
    return [
        f"{metric}: {num} images for {sizes[FEATURES[metric]]} features leave the covariance "
        "singular; the distance comes out too large by much"
        for metric in metrics
        if (metric == "fid" or metric.startswith("fd_")) and num <= sizes[FEATURES[metric]]
    ]


def gather_seconds(watch: Stopwatch, ranks: Ranks) -> dict[str, list[float]]:
    """Stage -> seconds of each rank. Collective."""
    told: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(told, watch.seconds)
    return {stage: [round(seconds[stage], 2) for seconds in told] for stage in watch.seconds}
