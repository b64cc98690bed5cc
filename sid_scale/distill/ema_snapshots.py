"""A run's averages of other widths as snapshots, for `sid-scale phema`."""

from sid_scale.distill.build import Run
from sid_scale.distill.outputs import descriptions
from sid_scale.methods import GENERATOR
from sid_scale.zero.snapshots import EMA_SNAPSHOTS, remove_after, write_snapshot


def write_ema_snapshot(run: Run) -> None:
    """Writes the averages of this moment, if the run keeps any. Collective.

    One average after another is put together on the host of rank 0.

    Raises:
        SnapshotError: the disk is full, the folder read-only ...
    """
    if not run.other_emas:
        return
    gathered = ((width, ema.gather()) for width, ema in run.other_emas.items())
    if not run.ranks.is_first:
        for _ in gathered:
            pass
        return
    frozen = run.frozen.get(GENERATOR)
    write_snapshot(
        run.folder / EMA_SNAPSHOTS,
        run.progress.images_seen,
        ((width, parameters or {}) for width, parameters in gathered),
        {name: buffer.cpu() for name, buffer in run.generator.module.named_buffers()},
        descriptions(run)[GENERATOR],
        None if frozen is None else frozen.describe(),
    )


def forget_ema_snapshots_after(run: Run, images_seen: int) -> None:
    """Removes snapshots of iterations that are about to happen again. For one rank to call.

    Raises:
        SnapshotError: they cannot be removed.
    """
    remove_after(run.folder / EMA_SNAPSHOTS, images_seen)
