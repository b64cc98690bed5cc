"""Writing a run's checkpoints and finding the one to go on from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from sid_scale.config.run import RunConfig
from sid_scale.distill.build import Progress, Run
from sid_scale.distill.meter import Meter, MeterSums
from sid_scale.distill.outputs import descriptions, forget_metrics_after, versions
from sid_scale.distill.telemetry import Telemetry
from sid_scale.ranks import on_first_rank
from sid_scale.zero import retention
from sid_scale.zero.checkpoint import load_checkpoint
from sid_scale.zero.saved import (
    MANIFEST,
    DamagedError,
    TrainingStateError,
    read_manifest,
    read_state,
)
from sid_scale.zero.writer import CheckpointWriter, Completed

# Another value of these is another run; a name that ends in a dot stands for all below it. All
# else may change on resume, and is told.
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
    "data_shape",
    "data_shape.",
)
# The path of the same teacher or data may be another today.
UNTOLD = ("run_dir", "resume", "teacher", "data", "generator_init")


def checkpoint_writer(config: RunConfig) -> CheckpointWriter:
    """What writes the checkpoints of this run."""
    checkpoint = config.checkpoint
    return CheckpointWriter(
        _checkpoints_of(config),
        keep=checkpoint.keep,
        keep_every=checkpoint.keep_every,
        async_save=checkpoint.async_save,
    )


class Resumed(NamedTuple):
    """What a run goes on with, besides its state."""

    told: list[str]  # what whoever watches should know
    meters: MeterSums  # of the interval in progress


def save(run: Run, meter: Meter, writer: CheckpointWriter) -> Completed | None:
    """Begins a checkpoint of where the run stands, unless there is one. Collective.

    -> the one before, if it has only now become complete.

    Raises:
        TrainingStateError: this one cannot be begun, or the one before could not be written.
    """
    seen = run.progress.images_seen
    if run.saved_at == seen:
        return None
    run.saved_at = seen
    progress = {
        "images_seen": seen,
        "skipped_updates": run.progress.skipped_updates,
        "skipped_samples": skipped_samples(run),
    }
    counters = {
        "progress": progress,
        "identity": run.identity,
        "config": dataclasses.asdict(run.config),
        "networks": descriptions(run),
        "versions": versions(),
        "meters": meter.gather(),
    }
    return writer.save(seen, run.state, counters)


def resume(run: Run) -> Resumed:
    """Goes on from the checkpoint that `find_checkpoint` names, or starts. Collective.

    Raises:
        TrainingStateError: the checkpoint is missing, damaged or another run's, or see there.
    """
    checkpoint, told = _sound_checkpoint(run)
    if checkpoint is None:
        on_first_rank(lambda: forget_metrics_after(run, 0))
        return Resumed(told, {})
    counters = on_first_rank(lambda: read_state(checkpoint))
    told += _compare(checkpoint, counters, run)
    load_checkpoint(checkpoint, run.state)
    run.progress = Progress(**counters["progress"])
    if not run.ranks.is_first:
        run.progress.skipped_samples = 0
    run.saved_at = run.progress.images_seen if checkpoint.parent == _folder(run) else None
    on_first_rank(lambda: forget_metrics_after(run, run.progress.images_seen))
    ranks, stage = counters["layout"]["ranks"], counters["layout"]["stages"]["generator"]
    moved = (ranks, stage) != (run.ranks.world_size, run.settings.stage)
    written = f", written by {ranks} ranks at ZeRO {stage}" if moved else ""
    told.append(f"resumed from {checkpoint}{written}")
    return Resumed(told, _share_of_meters(counters["meters"], run))


def skipped_samples(run: Run) -> int:
    """Bad samples that all ranks have skipped since the run began. Collective."""
    count = torch.tensor(run.progress.skipped_samples, device=run.ranks.device)
    dist.all_reduce(count)
    return int(count)


def find_checkpoint(config: RunConfig, damaged: Sequence[Path] = ()) -> Path | None:
    """The checkpoint that a config resumes from; None: start.

    `auto` is the run folder's newest that is not among `damaged`; a given folder serves as long
    as the run folder has none of its own, so that the same command goes on after another
    interruption.

    Raises:
        TrainingStateError: `resume` is never and the run folder has checkpoints, it names what
            is no checkpoint, or one of the run folder's own that is not the newest.
    """
    folder = _checkpoints_of(config)
    own = [p for p in retention.checkpoints(folder) if p not in damaged]
    newest = own[-1] if own else None
    if config.resume == "auto" or (newest is None and config.resume == "never"):
        return newest
    if config.resume == "never":
        raise TrainingStateError(
            f"resume is never, but {folder} holds checkpoints: "
            "take another run_dir, or resume: auto to go on with this run"
        )
    given = Path(config.resume).resolve()  # what `latest` is now it may not be in a minute
    if not (given / MANIFEST).is_file():
        raise TrainingStateError(
            f"resume is {config.resume}: neither auto, never nor a checkpoint's folder"
        )
    if newest is None:
        return given
    if given.parent == folder.resolve() and given.name != newest.name:
        raise TrainingStateError(
            f"resume names {given}, but {newest} is newer: take another run_dir, "
            "or remove the newer ones to give them up"
        )
    return newest


def _sound_checkpoint(run: Run) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what was found damaged on the way to it. Collective.

    One rank looks for it: on a network file system the others may see another moment. Nothing
    is moved before a sound one is found.
    """
    told: list[str] = []
    damaged: list[Path] = []
    while checkpoint := on_first_rank(lambda: find_checkpoint(run.config, damaged)):
        faults = _faults(checkpoint)
        if not faults:
            break
        told.append(f"checkpoint {checkpoint} is damaged: {'; '.join(faults[:3])}")
        if checkpoint.parent != _folder(run) or _names_one(run.config):
            raise TrainingStateError(f"{told[-1]}; name another one in resume")
        damaged.append(checkpoint)
    if damaged:
        told += on_first_rank(lambda: _set_aside(damaged, checkpoint, told))
    return checkpoint, told


def _names_one(config: RunConfig) -> bool:
    """Whether `resume` is a checkpoint's folder."""
    return config.resume not in ("auto", "never")


def _set_aside(damaged: list[Path], sound: Path | None, told: list[str]) -> list[str]:
    if sound is None:
        raise TrainingStateError(
            "\n".join(told) + f"\nno sound checkpoint is left in {damaged[0].parent}: mend one, "
            "or take another run_dir to start anew"
        )
    try:
        names = [retention.quarantine(checkpoint).name for checkpoint in damaged]
        retention.link(sound.parent, retention.LATEST, sound)
    except OSError as error:
        raise TrainingStateError(f"damaged checkpoints cannot be set aside: {error}") from error
    return [f"set aside as {', '.join(names)} (remove it when you like); going on from {sound}"]


def _faults(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files, each read by one of the ranks. Collective.

    Raises:
        TrainingStateError: a rank cannot read them, which says nothing of the files.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    unreadable = ""
    faults: list[str] = []
    try:
        manifest = read_manifest(checkpoint)
        faults = manifest.faults(sorted(manifest.files)[rank::world_size])
    except DamagedError as error:
        faults = [str(error)]
    except TrainingStateError as error:
        unreadable = str(error)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (faults, unreadable))
    for _, why in gathered:
        if why:
            raise TrainingStateError(why)
    return list(dict.fromkeys(fault for part, _ in gathered for fault in part))


def _share_of_meters(meters: list[MeterSums], run: Run) -> MeterSums:
    """This rank's part of what the interval in progress had measured."""
    if len(meters) == run.ranks.world_size:
        return meters[run.ranks.rank]
    pairs = {name: [part[name] for part in meters] for name in meters[0]}
    mine = 1.0 if run.ranks.is_first else 0.0  # the first goes on with all ranks' sums
    return {
        name: (mine * sum(total for total, _ in parts), mine * sum(n for _, n in parts))
        for name, parts in pairs.items()
    }


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
    return _checkpoints_of(run.config)


def _checkpoints_of(config: RunConfig) -> Path:
    return Path(config.run_dir) / "checkpoints"


def tell_completed(completed: Completed | None, telemetry: Telemetry) -> None:
    """Says that a checkpoint has become complete, and what it cost."""
    if completed is None:
        return
    figures = {
        "checkpoint/pause_seconds": completed.pause_seconds,
        "checkpoint/write_seconds": completed.write_seconds,
        "checkpoint/gigabytes": completed.gigabytes,
    }
    telemetry.note(figures)
    for line in completed.told:
        telemetry.say(line)
    telemetry.say(
        f"checkpoint {completed.folder.name}: {completed.gigabytes:.3g} GB, training waited "
        f"{completed.pause_seconds:.2f} s, written after {completed.write_seconds:.2f} s"
    )
