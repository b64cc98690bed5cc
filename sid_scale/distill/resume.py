"""Writing a run's checkpoints and finding the one to go on from."""

import dataclasses
import json
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

# Another value of these, or of what the generator's origin says, is another run; all else may
# change on resume.
FIXED = ("seed", "batch_size", "micro_batch", "method", "init_sigma", "steps", "teacher_sha256")


def save(run: Run) -> None:
    """Writes a checkpoint of where the run stands, unless there is one. Collective."""
    if run.saved_at == run.progress.images_seen:
        return
    folder = run.folder / "checkpoints"
    counters = {
        "progress": dataclasses.asdict(run.progress),
        "config": dataclasses.asdict(run.config),
        "origin": run.origin,
    }
    save_checkpoint(folder / f"{run.progress.images_seen:012d}", run.state, counters)
    run.saved_at = run.progress.images_seen
    if run.ranks.is_first:
        keep_newest(folder, run.config.checkpoint.keep)


def resume(run: Run) -> None:
    """Goes on from the checkpoint that `find_checkpoint` names, or starts. Collective.

    Raises:
        TrainingStateError: the checkpoint is missing, damaged or another run's, or see there.
    """
    checkpoint = _agreed_checkpoint(run)
    if checkpoint is None:
        return
    counters = read_counters(checkpoint)
    _check_same_run(checkpoint, counters, run)
    load_checkpoint(checkpoint, run.state)
    skipped = counters["progress"]["skipped_updates"]
    run.progress = Progress(counters["progress"]["images_seen"], skipped)
    run.saved_at = run.progress.images_seen
    if run.ranks.is_first:
        _forget_metrics_after(run.folder / "metrics.jsonl", run.progress.images_seen)


def _agreed_checkpoint(run: Run) -> Path | None:
    """`find_checkpoint`, found or failed alike on all ranks.

    One rank looks: on a network file system the others may see another moment.
    """
    found: list[Path | TrainingStateError | None] = [None]
    if run.ranks.is_first:
        try:
            found = [find_checkpoint(run.config)]
        except TrainingStateError as error:
            found = [error]
    dist.broadcast_object_list(found)
    if isinstance(found[0], TrainingStateError):
        raise found[0]
    return found[0]


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint that a config resumes from; None: start.

    `auto` is the run folder's newest; a given folder serves as long as the run folder has none
    of its own, so that the same command goes on after another interruption.

    Raises:
        TrainingStateError: `resume` is never and the run folder has checkpoints, or it names
            one of the run folder's own that is not the newest.
    """
    folder = Path(config.run_dir) / "checkpoints"
    newest = latest_checkpoint(folder)
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


def _check_same_run(checkpoint: Path, counters: dict[str, Any], run: Run) -> None:
    ours = {**dataclasses.asdict(run.config), **run.origin}
    theirs = {**counters["config"], **counters["origin"]}
    differ = [f"{k}: {theirs.get(k)} -> {ours[k]}" for k in FIXED if ours[k] != theirs.get(k)]
    if differ:
        raise TrainingStateError(
            f"checkpoint {checkpoint} is of another run ({'; '.join(differ)}): "
            "give the settings it was made with, or another run_dir"
        )


def _forget_metrics_after(metrics: Path, images_seen: int) -> None:
    """Drops records of iterations that are about to happen again."""
    if not metrics.is_file():
        return
    lines = metrics.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["images_seen"] <= images_seen]
    metrics.write_text("".join(kept))
