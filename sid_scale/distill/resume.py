"""Finding the checkpoint that a run goes on from, and making sure that it is this run's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sid_scale.config.run import RunConfig
from sid_scale.ranks import on_first_rank
from sid_scale.zero import retention
from sid_scale.zero.saved import MANIFEST, DamagedError, TrainingStateError, read_manifest

# Another value of these is another run; a name that ends in a dot covers all below it. All else may
# change on resume, and is logged.
MUST_MATCH = (
    "seed",
    "batch_size",
    "in_effect.",
    "method",
    "steps",
    "init_sigma",
    "roles.",
    "teacher_sha256",
    "files_sha256.",
    "guides_sha256.",
    "ema.relative_widths",  # an average has no other beginning than the run's
    "architecture.",
    "data_shape",
    "data_shape.",
)
# The path of the same teacher or data may be another today.
IGNORED = ("run_dir", "resume", "teacher", "data", "generator_init")


def checkpoints_folder(config: RunConfig) -> Path:
    """Where a run's checkpoints are."""
    return Path(config.run_dir) / "checkpoints"


def find_checkpoint(config: RunConfig, damaged: Sequence[Path] = ()) -> Path | None:
    """The checkpoint that a config resumes from; None: start.

    `auto` is the run folder's newest that is not among `damaged`; a given folder serves as long
    as the run folder has none of its own, so that the same command goes on after another
    interruption.

    Raises:
        TrainingStateError: `resume` is never and the run folder has checkpoints, it names what
            is no checkpoint, or one of the run folder's own that is not the newest.
    """
    folder = checkpoints_folder(config)
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


def sound_checkpoint(config: RunConfig) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and messages about damaged ones before it. Collective.

    One rank looks for it: on a network file system the others may see another moment. Nothing
    is moved before a sound one is found.
    """
    messages: list[str] = []
    damaged: list[Path] = []
    while checkpoint := on_first_rank(lambda: find_checkpoint(config, damaged)):
        faults = _faults(checkpoint)
        if not faults:
            break
        messages.append(f"checkpoint {checkpoint} is damaged: {'; '.join(faults[:3])}")
        if checkpoint.parent != checkpoints_folder(config) or _names_one(config):
            raise TrainingStateError(f"{messages[-1]}; name another one in resume")
        damaged.append(checkpoint)
    if damaged:
        messages += on_first_rank(lambda: _quarantine(damaged, checkpoint, messages))
    return checkpoint, messages


def _names_one(config: RunConfig) -> bool:
    """Whether `resume` is a checkpoint's folder."""
    return config.resume not in ("auto", "never")


def _quarantine(damaged: list[Path], sound: Path | None, messages: list[str]) -> list[str]:
    if sound is None:
        raise TrainingStateError(
            "\n".join(messages)
            + f"\nno sound checkpoint is left in {damaged[0].parent}: mend one, "
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


def changes_since(
    checkpoint: Path, counters: dict[str, Any], config: RunConfig, compatibility: dict[str, Any]
) -> list[str]:
    """Messages about the settings that differ from those of a checkpoint.

    Args:
        checkpoint: its folder, for errors.
        counters: its state.json.
        compatibility: see provenance.py.

    Raises:
        TrainingStateError: something that makes it another run.
    """
    ours = _flat({**dataclasses.asdict(config), **compatibility})
    theirs = _flat({**counters["config"], **counters["compatibility"]})
    differ = {
        key: f"{key}: {theirs.get(key)} -> {ours.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    other = [line for key, line in differ.items() if _must_match(key)]
    if other:
        raise TrainingStateError(
            f"checkpoint {checkpoint} is of another run: "
            + "".join(f"\n    {line}" for line in other)
            + "\ngive the settings it was made with, or another run_dir"
        )
    return [f"changed since the checkpoint: {v}" for k, v in differ.items() if k not in IGNORED]


def _must_match(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in MUST_MATCH)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, with dots in the names; sequences as tuples."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat
