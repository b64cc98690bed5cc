"""What a run writes for people: its settings, sample grids, and generators as folders."""

import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_scale.atomic import atomic_write
from sid_scale.config.networks import named_as_on_hub
from sid_scale.config.run import to_yaml
from sid_scale.diffusion.few_step import generate, generator_inputs
from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.distill.build import Run
from sid_scale.distill.telemetry import Telemetry
from sid_scale.errors import SidScaleError
from sid_scale.generators.card import CARD, write_card
from sid_scale.generators.folder import (
    SAMPLES,
    adopt_class_names,
    adopt_vae,
    classes_in_turn,
    write_samples,
)
from sid_scale.image_grid import image_grid, write_png
from sid_scale.methods import GENERATOR
from sid_scale.metrics_log import METRICS, parse_record
from sid_scale.networks.compile_blocks import sampling
from sid_scale.networks.folder import describe, stream_network
from sid_scale.ranks import on_first_rank

PACKAGES = ("sid-scale", "torch", "deepspeed", "webdataset", "diffusers", "safetensors", "numpy")


class OutputError(SidScaleError):
    """The run folder cannot be written to; the message says why."""


def prepare_folder(run: Run) -> None:
    """Makes the run folder; writes the resolved settings, and on what they run. Collective.

    Raises:
        OutputError: the disk is full, the folder read-only ...
    """
    environment = {
        "ranks": run.ranks.world_size,
        "device": run.ranks.device.type,
        "zero_stage": run.settings.stage,
        "compute_dtype": str(run.settings.compute_dtype).removeprefix("torch."),
        **versions(),
    }

    def prepare() -> None:
        write_text(run.folder / "config.yaml", to_yaml(named_as_on_hub(run.config)))
        write_text(run.folder / "environment.json", json.dumps(environment, indent=2) + "\n")

    on_first_rank(prepare)


def write_text(path: Path, text: str) -> None:
    """Writes a file of a run folder, atomically.

    Raises:
        OutputError: the disk is full, the folder read-only ...
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise OutputError(f"run_dir: {path} cannot be written: {error}") from error


@torch.no_grad()
def generate_samples(run: Run, count: int, micro_batch: int) -> Tensor:
    """Samples of the averaged generator from fixed seeds, classes in turn. Collective.

    -> (count, C, H, W), before decoding. Every rank computes the same: a network in shards needs
    all of them anyway.
    """
    turn = classes_in_turn(count, run.architecture.label_dim)
    classes = None if turn is None else torch.tensor(turn, device=run.ranks.device)
    generated = []
    with run.ema.applied(), sampling(run.generator.module):
        for samples in torch.arange(count).split(micro_batch):
            noise = KeyedNoise(run.config.seed, "samples", samples, run.ranks.device)
            z, step_noise = generator_inputs(
                noise.of("z"), noise.of("step_noise"), run.image_shape, run.config.steps
            )
            condition = None if classes is None else classes[samples]
            generated.append(
                generate(
                    run.generator.module,
                    z,
                    step_noise,
                    condition,
                    run.config.init_sigma,
                )
            )
    return torch.cat(generated)


def show_samples(run: Run, telemetry: Telemetry) -> None:
    """Decodes a grid of samples into TensorBoard and samples/. Collective."""
    if not run.config.log.samples_every_images:
        return
    samples = generate_samples(run, run.config.log.samples, run.config.micro_batch)
    if not run.ranks.is_first:
        return
    images = run.codec.decode(samples).cpu()
    grid = image_grid(images)
    telemetry.image("samples", grid, run.progress.images_seen)
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)
    write_png(folder / f"{run.progress.images_seen:012d}.png", grid)


def write_generator(run: Run, folder: Path | None) -> None:
    """Writes the averaged generator as a network folder; None: not wanted. Collective."""
    if folder is None:
        return
    state = run.ema.gather()
    if state is None:
        return
    if GENERATOR in run.frozen:
        state |= run.frozen[GENERATOR].weights
    # Fourier frequencies are no parameters: they are neither trained nor averaged.
    state |= {name: buffer.cpu() for name, buffer in run.generator.module.named_buffers()}
    dtypes = dict.fromkeys(state, torch.float32)
    stream_network(folder, descriptions(run)["generator"], state.__getitem__, dtypes)


def write_final_generator(run: Run, telemetry: Telemetry) -> None:
    """Writes generator/ and completes its folder: VAE, class names, sample grid, model card.

    Collective. An error in writing the network ends the run; one in what completes it is logged.
    """
    folder, samples = run.folder / "generator", None
    write_generator(run, folder)
    if run.config.log.samples_every_images:
        samples = generate_samples(run, run.config.log.samples, run.config.micro_batch)
    if not run.ranks.is_first:
        return
    additions: dict[str, Callable[[], object]] = {
        "VAE": lambda: adopt_vae(folder, run.codec),
        "class names": lambda: adopt_class_names(folder, Path(run.config.teacher)),
        SAMPLES: lambda: samples is None or write_samples(folder, run.codec.decode(samples)),
        CARD: lambda: write_card(folder),
    }
    for what, add in additions.items():
        try:
            add()
        except Exception as error:  # a full disk or memory must not undo days of training
            telemetry.say(f"{folder}: no {what} ({error}); `sid-scale card` completes it")


def descriptions(run: Run) -> dict[str, dict[str, Any]]:
    """Contents of `config.json` for each trained network as a folder, by role."""
    provenance = {**run.provenance, "images_seen": run.progress.images_seen}
    return {
        role: describe(architecture, run.codec.describe(), {**provenance, "kind": role})
        for role, architecture in run.architectures.items()
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def forget_metrics_after(run: Run, images_seen: int) -> None:
    """Drops records of iterations that are about to happen again. For one rank to call.

    Raises:
        OutputError: the disk is full, the folder read-only ...
    """
    metrics = run.folder / METRICS
    if metrics.is_file():
        lines = metrics.read_text(errors="replace").splitlines(keepends=True)
        write_text(metrics, "".join(line for line in lines if _is_record_until(line, images_seen)))


def _is_record_until(line: str, images_seen: int) -> bool:
    record = parse_record(line) if line.endswith("\n") else None
    return record is not None and record["images_seen"] <= images_seen


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
