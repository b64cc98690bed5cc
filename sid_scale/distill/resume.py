"""Writing a run's checkpoints and finding the one to go on from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sid_scale.config import RunConfig
from sid_scale.distill.build import Progress, Run
from sid_scale.zero.checkpoint import (
    TrainingStateError,
    keep_newest,
    latest_checkpoint,
    load_checkpoint,
    read_counters,
    save_checkpoint,
)

# Another value of these, or of anything in the generator's origin, is another run; all else may
# change on resume.
FIXED = ("seed", "batch_size", "micro_batch")


def save(run: Run) -> None:
    """Writes a checkpoint of where the run stands, unless there is one. Collective."""
    folder = _folder(run)
    here = folder / f"{run.progress.images_seen:012d}"
    if latest_checkpoint(folder) == here:
        return
    counters = {
        "progress": dataclasses.asdict(run.progress),
        "config": dataclasses.asdict(run.config),
        "origin": run.origin,
    }
    save_checkpoint(here, run.state, counters)
    if run.ranks.is_first:
        keep_newest(folder, run.config.checkpoint.keep)


def resume(run: Run) -> None:
    """Goes on from the checkpoint that `resume` names, or starts. Collective.

    Raises:
        TrainingStateError: the checkpoint is missing, damaged or another run's; or `resume` is
            never and the folder has checkpoints.
    """
    checkpoint = find_checkpoint(run.config)
    # All ranks must find the same one before any of them writes another.
    dist.barrier()
    if checkpoint is None:
        return
    counters = read_counters(checkpoint)
    _check_same_run(checkpoint, counters, run)
    load_checkpoint(checkpoint, run.state)
    run.progress = Progress(**counters["progress"])


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint that a config resumes from; None: start."""
    newest = latest_checkpoint(Path(config.run_dir) / "checkpoints")
    if config.resume == "auto":
        return newest
    if config.resume != "never":
        return Path(config.resume)
    if newest is not None:
        raise TrainingStateError(
            f"resume is never, but {newest.parent} holds checkpoints: "
            "take another run_dir, or resume: auto to go on with this run"
        )
    return None


def _check_same_run(checkpoint: Path, counters: dict[str, Any], run: Run) -> None:
    ours = {**dataclasses.asdict(run.config), **run.origin}
    theirs = {**counters["config"], **counters["origin"]}
    fixed = (*FIXED, *run.origin)
    differ = [f"{k}: {theirs.get(k)} -> {ours[k]}" for k in fixed if ours[k] != theirs.get(k)]
    if differ:
        raise TrainingStateError(
            f"checkpoint {checkpoint} is of another run ({'; '.join(differ)}): "
            "give the settings it was made with, or another run_dir"
        )


def _folder(run: Run) -> Path:
    return run.folder / "checkpoints"
