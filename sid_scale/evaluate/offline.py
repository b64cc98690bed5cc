"""Evaluating a network folder: `sid-scale evaluate run` and `teacher`, on ranks."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sid_scale.class_lists import parse_numbers
from sid_scale.codecs import Codec, VAECodec, fetch_once_a_node
from sid_scale.diffusion.heun import SamplerSettings, steps_for
from sid_scale.dtypes import torch_dtype
from sid_scale.errors import SidScaleError, UsageError
from sid_scale.evaluate.detectors import detector_files
from sid_scale.evaluate.features import (
    MetricError,
    check_metrics,
    features_of,
    need_images,
    with_fdr_members,
)
from sid_scale.evaluate.job import Job, run_evaluation
from sid_scale.evaluate.samplers import (
    GeneratorSampler,
    TeacherSampler,
    describe_codec,
    describe_network,
    open_teacher,
)
from sid_scale.generators.folder import POST_HOC_EMA
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.hub.folders import fill_options, on_every_node
from sid_scale.hub.names import name_of
from sid_scale.measurements import group
from sid_scale.networks.folder import read_description
from sid_scale.networks.guides import check_guide
from sid_scale.ranks import Ranks, joined_ranks

EVALUATIONS = "63"  # of an image, if nothing else is said: EDM2's
CHURN_OPTIONS = ("s_min", "s_max", "s_noise")
SAMPLER_OPTIONS = ("sigma_min", "sigma_max", "rho", "s_churn", *CHURN_OPTIONS)


def on_ranks(
    evaluate: Callable[[argparse.Namespace, Ranks], None], options: argparse.Namespace
) -> int:
    """Joins the ranks and evaluates; returns the exit status."""
    try:
        options.metrics = metrics_of(options)
    except MetricError as error:
        raise UsageError(f"{error}") from error
    with joined_ranks() as ranks:
        try:
            fill_options(options, on_every_node)
            evaluate(options, ranks)
        except KeyboardInterrupt as error:
            raise SidScaleError("interrupted; the same command goes on from here") from error
    return 0


def metrics_of(options: argparse.Namespace) -> tuple[str, ...]:
    """What `--metrics` asks for, and what that is made of.

    Raises:
        MetricError: a metric does not exist, or FDR has no detectors.
    """
    asked = [m.strip() for m in options.metrics.split(",") if m.strip()]
    files = detector_files(options)
    return with_fdr_members(check_metrics(asked, files.encoders), files.kinds)


def evaluate_generator(options: argparse.Namespace, ranks: Ranks) -> None:
    """`run`. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    job = generator_job(options.generator, options.steps, options.out, options, ranks)
    run_evaluation(job, options, ranks)


def generator_job(
    folder: Path, steps: int | None, out: Path, options: argparse.Namespace, ranks: Ranks
) -> Job:
    """The evaluation of a generator's folder into `out`. Collective.

    Args:
        steps: NFE of an image; None: its own.

    Raises:
        SidScaleError: the generator cannot be used.
    """
    generator = OneStepGenerator.from_pretrained(
        folder, vae=options.vae, dtype=torch_dtype(options.dtype), batch_size=options.batch_size
    ).to(ranks.device)
    set_vae_options(generator.codec, options)
    sampler = GeneratorSampler(generator, steps)
    described = describe_network(folder, sampler.architecture)
    inputs = {
        **described,
        "init_sigma": generator.init_sigma,
        "steps": sampler.steps,
        "dtype": options.dtype,
    }
    provenance = read_description(folder).provenance
    network = {
        "kind": "generator",
        "path": name_of(folder) or str(folder),
        "sha256": described["weights_sha256"],
        "images_seen": provenance.get("images_seen"),
        "evaluations": sampler.steps,
        "guidance": None,
    }
    if post_hoc := group(provenance, POST_HOC_EMA):
        network["relative_width"] = post_hoc.get("relative_width")
    return Job(sampler, out, network, inputs, describe_codec(sampler.codec))


def evaluate_teacher(options: argparse.Namespace, ranks: Ranks) -> None:
    """`teacher`, at one number of evaluations or several. Collective.

    Raises:
        SidScaleError: something given cannot be used.
    """
    dtype, folder = torch_dtype(options.dtype), options.teacher
    every_setting = sampler_settings(options)
    network, codec = open_teacher(folder, dtype, options.vae)
    set_vae_options(codec, options)
    guide, guidance = None, None
    if options.guide is not None:
        guide, its_codec = open_teacher(options.guide, dtype)
        check_guide(network.architecture, codec, guide.architecture, its_codec, options.guide)
        described = describe_network(options.guide, guide.architecture)
        guidance = {
            "guide": name_of(options.guide) or str(options.guide),
            "guide_sha256": described["weights_sha256"],
            "weight": options.guidance,
        }
    described = describe_network(folder, network.architecture)
    for settings in every_setting:
        sampler = TeacherSampler(
            network,
            codec,
            settings,
            guide=guide,
            guidance=options.guidance,
            batch_size=options.batch_size,
            device=ranks.device,
        )
        several = len(every_setting) > 1
        out = options.out / str(settings.evaluations) if several else options.out
        run_evaluation(_teacher_job(sampler, out, described, guidance, options), options, ranks)


def _teacher_job(
    sampler: TeacherSampler,
    out: Path,
    described: dict[str, Any],
    guidance: dict[str, Any] | None,
    options: argparse.Namespace,
) -> Job:
    network = {
        "kind": "teacher",
        "path": name_of(options.teacher) or str(options.teacher),
        "sha256": described["weights_sha256"],
        "images_seen": read_description(options.teacher).provenance.get("images_seen"),
        "evaluations": sampler.settings.evaluations * (1 if guidance is None else 2),
        "sampler": sampler.settings.describe(),
        "guidance": guidance,
    }
    inputs = {
        **described,
        "sampler": sampler.settings.describe(),
        "guide_sha256": guidance and guidance["guide_sha256"],
        "guidance": options.guidance,
        "dtype": options.dtype,
    }
    return Job(sampler, out, network, inputs, describe_codec(sampler.codec))


def sampler_settings(options: argparse.Namespace) -> list[SamplerSettings]:
    """The teacher's samplers, one for each number of evaluations that is asked for.

    Raises:
        UsageError: says which option is at fault.
    """
    if (options.guide is None) != (options.guidance == 1):
        raise UsageError("--guide DIR and --guidance W (not 1) go together: give both or neither")
    given = {name: getattr(options, name) for name in SAMPLER_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if idle := [name for name in given if name in CHURN_OPTIONS and not options.s_churn]:
        raise UsageError(f"--{idle[0].replace('_', '-')} acts with --s-churn alone: give it, too")
    try:
        every_steps = [options.steps]
        if options.steps is None:
            asked = parse_numbers(options.evaluations or EVALUATIONS, "evaluations")
            every_steps = [steps_for(number) for number in asked]
        return [SamplerSettings(steps, **given) for steps in every_steps]
    except ValueError as error:
        raise UsageError(f"the sampler: {error}") from error


def set_vae_options(codec: Codec, options: argparse.Namespace) -> None:
    """Lets a VAE compute as the command line says; fetches it if it is wanted and on the hub.

    Collective.
    """
    if need_images(features_of(options.metrics)):
        fetch_once_a_node(codec)
    if isinstance(codec, VAECodec):
        codec.dtype = torch_dtype(options.vae_dtype)
        codec.decodes_at_once = options.vae_batch
