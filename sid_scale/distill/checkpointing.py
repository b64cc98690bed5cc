"""A run's checkpoints: restoring the newest sound one, writing others while training goes on."""

import dataclasses
from typing import NamedTuple

import torch
import torch.distributed as dist

from sid_scale.distill.build import Progress, Run
from sid_scale.distill.ema_snapshots import forget_ema_snapshots_after
from sid_scale.distill.meter import Meter, MeterSums
from sid_scale.distill.outputs import descriptions, forget_metrics_after, versions
from sid_scale.distill.resume import changes_since, checkpoints_folder, sound_checkpoint
from sid_scale.distill.telemetry import Telemetry
from sid_scale.ranks import on_any_rank, on_first_rank
from sid_scale.zero.checkpoint import load_checkpoint
from sid_scale.zero.saved import read_state
from sid_scale.zero.writer import CheckpointWriter, Completed


class Resumed(NamedTuple):
    """What a run goes on with, besides its state."""

    messages: list[str]  # for the log
    meters: MeterSums  # of the interval in progress


class Checkpoints:
    """The checkpoints of one run. All methods are collective."""

    def __init__(self, run: Run):
        settings = run.config.checkpoint
        self._run = run
        self._writer = CheckpointWriter(
            checkpoints_folder(run.config),
            keep=settings.keep,
            keep_every=settings.keep_every,
            async_save=settings.async_save,
        )

    def restore(self) -> Resumed:
        """Goes on from the checkpoint that the config's `resume` names, or starts.

        Raises:
            TrainingStateError: the checkpoint is missing, damaged or another run's.
        """
        run = self._run
        checkpoint, messages = sound_checkpoint(run.config)
        if checkpoint is None:
            on_first_rank(lambda: _forget_after(run, 0))
            return Resumed(messages, {})
        counters = on_first_rank(lambda: read_state(checkpoint))
        messages += changes_since(checkpoint, counters, run.config, run.compatibility)
        load_checkpoint(checkpoint, run.state)
        run.progress = Progress(**counters["progress"])
        if not run.ranks.is_first:
            run.progress.skipped_samples = 0
        own = checkpoint.parent == checkpoints_folder(run.config)
        run.saved_at = run.progress.images_seen if own else None
        on_first_rank(lambda: _forget_after(run, run.progress.images_seen))
        ranks, stages = counters["layout"]["ranks"], counters["layout"]["stages"]
        stage = max(stages.values())  # of networks that are whole on every rank it is 2 at most
        moved = (ranks, stage) != (run.ranks.world_size, run.settings.stage)
        written = f", written by {ranks} ranks at ZeRO {stage}" if moved else ""
        messages.append(f"resumed from {checkpoint}{written}")
        return Resumed(messages, _share_of_meters(counters["meters"], run))

    def save_if_due(self, meter: Meter, telemetry: Telemetry, *, last: bool = False) -> None:
        """Begins a checkpoint when one is due, or at the end; logs the one before if it is
        complete only now.

        Raises:
            TrainingStateError: this one cannot be begun, or the one before could not be written.
        """
        run = self._run
        due = last or run.is_due(run.config.checkpoint.every_images)
        if due and run.saved_at != run.progress.images_seen:
            _log(self._save(meter), telemetry)

    def agree(self, stop: bool, telemetry: Telemetry) -> bool:
        """Whether any rank is asked to stop; completes a checkpoint once all its parts are written.

        One all-reduce carries both numbers.
        """
        stopping, writing = on_any_rank(stop, self._writer.is_writing)
        if not writing:
            _log(self._writer.finish(), telemetry)
        return stopping

    def close(self, telemetry: Telemetry) -> None:
        """Waits for the checkpoint under way, if there is one, and completes it."""
        _log(self._writer.finish(), telemetry)

    def _save(self, meter: Meter) -> Completed | None:
        """-> the checkpoint before, if it has only now become complete."""
        run = self._run
        seen = run.saved_at = run.progress.images_seen
        progress = dataclasses.asdict(run.progress) | {"skipped_samples": skipped_samples(run)}
        del progress["skipped_in_a_row"]
        counters = {
            "progress": progress,
            "compatibility": run.compatibility,
            "config": dataclasses.asdict(run.config),
            "networks": descriptions(run),
            "frozen": {role: frozen.describe() for role, frozen in run.frozen.items()},
            "versions": versions(),
            "meters": meter.gather(),
        }
        return self._writer.save(seen, run.state, counters)


def _forget_after(run: Run, images_seen: int) -> None:
    """Drops what iterations have left that are about to happen again. For one rank to call."""
    forget_metrics_after(run, images_seen)
    forget_ema_snapshots_after(run, images_seen)


def skipped_samples(run: Run) -> int:
    """Bad samples that all ranks have skipped since the run began. Collective."""
    count = torch.tensor(run.progress.skipped_samples, device=run.ranks.device)
    dist.all_reduce(count)
    return int(count)


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


def _log(completed: Completed | None, telemetry: Telemetry) -> None:
    """Logs a checkpoint that has become complete, and what it cost."""
    if completed is None:
        return
    telemetry.note(
        {
            "checkpoint/pause_seconds": completed.pause_seconds,
            "checkpoint/write_seconds": completed.write_seconds,
            "checkpoint/gigabytes": completed.gigabytes,
        }
    )
    for line in completed.messages:
        telemetry.say(line)
    telemetry.say(
        f"checkpoint {completed.folder.name}: {completed.gigabytes:.3g} GB, training waited "
        f"{completed.pause_seconds:.2f} s, written after {completed.write_seconds:.2f} s"
    )
