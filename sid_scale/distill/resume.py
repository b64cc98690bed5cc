"""Writing a run's checkpoints and finding the one to go on from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sid_scale.config import RunConfig
from sid_scale.distill.build import Progress, Run
from sid_scale.distill.outputs import descriptions, forget_metrics_after, versions
from sid_scale.distill.telemetry import Telemetry
from sid_scale.ranks import on_first_rank
from sid_scale.zero import keeping
from sid_scale.zero.checkpoint import load_checkpoint
from sid_scale.zero.saved import (
    TrainingStateError,
    read_manifest,
    read_state,
)
from sid_scale.zero.writer import CheckpointWriter, Completed

# Another value of these is another run. All else may change on resume, and is told.
FIXED = (
    "seed",
    "batch_size",
    "micro_batch",
    "method",
    "steps",
    "objective.init_sigma",
    "forced_weight_norm.generator",
    "forced_weight_norm.fake_score",
    "teacher_sha256",
    "architecture.",
    "data_shape.",
)
# The path of the same teacher or data may be another today.
UNTOLD = ("run_dir", "resume", "teacher", "data", "generator_init")


def checkpoint_writer(config: RunConfig) -> CheckpointWriter:
    """What writes the checkpoints of this run."""
    checkpoint = config.checkpoint
    return CheckpointWriter(
        Path(config.run_dir) / "checkpoints",
        keep=checkpoint.keep,
        keep_every=checkpoint.keep_every,
        write_behind=checkpoint.write_behind,
    )


def save(run: Run, writer: CheckpointWriter) -> Completed | None:
    """Begins a checkpoint of where the run stands, unless there is one. Collective.

    -> the one before, if it has only now become complete.

    Raises:
        TrainingStateError: this one cannot be begun, or the one before could not be written.
    """
    seen = run.progress.images_seen
    if run.saved_at == seen:
        return None
    run.saved_at = seen
    progress = {"images_seen": seen, "skipped_updates": run.progress.skipped_updates}
    counters = {
        "progress": progress,
        "identity": run.identity,
        "config": dataclasses.asdict(run.config),
        "networks": descriptions(run),
        "ranks": run.ranks.world_size,
        "zero_stage": run.settings.stage,
        "versions": versions(),
    }
    return writer.save(seen, run.state, counters)


def resume(run: Run) -> list[str]:
    """Goes on from the checkpoint that `find_checkpoint` names, or starts. Collective.

    -> what whoever watches should know.

    Raises:
        TrainingStateError: the checkpoint is missing, damaged or another run's, or see there.
    """
    checkpoint, told = _sound_checkpoint(run)
    if checkpoint is None:
        return told
    counters = on_first_rank(lambda: read_state(checkpoint))
    told += _compare(checkpoint, counters, run)
    load_checkpoint(checkpoint, run.state)
    run.progress = Progress(**counters["progress"])
    run.saved_at = run.progress.images_seen if checkpoint.parent == _folder(run) else None
    on_first_rank(lambda: forget_metrics_after(run, run.progress.images_seen))
    then = counters["ranks"], counters["zero_stage"]
    now = run.ranks.world_size, run.settings.stage
    moved = f", by {then[0]} ranks at ZeRO {then[1]}" if then != now else ""
    return [*told, f"resumed from {checkpoint}{moved}"]


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint that a config resumes from; None: start.

    `auto` is the run folder's newest; a given folder serves as long as the run folder has none
    of its own, so that the same command goes on after another interruption.

    Raises:
        TrainingStateError: `resume` is never and the run folder has checkpoints, or it names
            one of the run folder's own that is not the newest.
    """
    folder = Path(config.run_dir) / "checkpoints"
    newest = next(reversed(keeping.checkpoints(folder)), None)
    if config.resume == "auto" or (newest is None and config.resume == "never"):
        return newest
    if config.resume == "never":
        raise TrainingStateError(
            f"resume is never, but {folder} holds checkpoints: "
            "take another run_dir, or resume: auto to go on with this run"
        )
    given = Path(config.resume)
    if newest is None:
        return given
    if given.resolve().parent == folder.resolve() and given.resolve() != newest.resolve():
        raise TrainingStateError(
            f"resume names {given}, but {newest} is newer: take another run_dir, "
            "or remove the newer ones to give them up"
        )
    return newest


def _sound_checkpoint(run: Run) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what was found damaged on the way to it. Collective.

    One rank looks for it: on a network file system the others may see another moment.
    """
    checkpoint, told = on_first_rank(lambda: find_checkpoint(run.config)), []
    while checkpoint is not None and (faults := _faults(checkpoint)):
        told.append(_set_aside(checkpoint, faults, run))
        checkpoint = on_first_rank(lambda: find_checkpoint(run.config))
    if told:
        told.append(f"going on from {checkpoint}" if checkpoint else "none is left: starting anew")
    return checkpoint, told


def _set_aside(checkpoint: Path, faults: list[str], run: Run) -> str:
    """Takes a damaged checkpoint out of the way; returns what to say of it. Collective."""
    damage = f"checkpoint {checkpoint} is damaged: {'; '.join(faults[:3])}"
    if checkpoint.parent != _folder(run):
        raise TrainingStateError(f"{damage}; name another one in resume")
    aside = on_first_rank(lambda: keeping.set_aside(checkpoint))
    return f"{damage}; set aside as {aside.name}"


def _faults(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files, each read by one of the ranks. Collective."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        manifest = read_manifest(checkpoint)
        faults = manifest.faults(sorted(manifest.files)[rank::world_size])
    except TrainingStateError as error:
        faults = [str(error)]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, faults)
    return list(dict.fromkeys(fault for part in gathered for fault in part))


def _compare(checkpoint: Path, counters: dict[str, Any], run: Run) -> list[str]:
    """What has been set otherwise since.

    Raises:
        TrainingStateError: something that makes it another run.
    """
    ours = _flat({**dataclasses.asdict(run.config), **run.identity})
    theirs = _flat({**counters["config"], **counters["identity"]})
    differ = {
        key: f"{key}: {theirs.get(key)} -> {ours.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    fixed = [line for key, line in differ.items() if _is_fixed(key)]
    if fixed:
        raise TrainingStateError(
            f"checkpoint {checkpoint} is of another run: "
            + "".join(f"\n    {line}" for line in fixed)
            + "\ngive the settings it was made with, or another run_dir"
        )
    return [f"changed since the checkpoint: {v}" for k, v in differ.items() if k not in UNTOLD]


def _is_fixed(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in FIXED)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, with dots in the names; sequences as tuples."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def _folder(run: Run) -> Path:
    return run.folder / "checkpoints"


def tell_completed(completed: Completed | None, run: Run, telemetry: Telemetry) -> None:
    """Says that a checkpoint has become complete, and what it cost."""
    if completed is None:
        return
    figures = {
        "checkpoint/pause_seconds": completed.pause_seconds,
        "checkpoint/write_seconds": completed.write_seconds,
        "checkpoint/gigabytes": completed.gigabytes,
    }
    telemetry.note(figures)
    telemetry.say(
        f"checkpoint {completed.folder.name}: {completed.gigabytes:.3g} GB, training waited "
        f"{completed.pause_seconds:.2f} s, written after {completed.write_seconds:.2f} s"
    )
