"""A run on the ranks of a launcher: `deepspeed --module sid_scale.train --config run.yaml ...`.

Puts together what distill/ leaves open: the run folder's lock and journal, requests to stop,
evaluation, and the count of its work.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from sid_scale import cli
from sid_scale.config.run import RunConfig
from sid_scale.jobs.attempts import FINISHED, STOPPED
from sid_scale.jobs.stop import EX_STOPPED, StopRequests, stop_requests


def train(config: RunConfig, stop_file: Path | None = None) -> int:
    """Trains; returns the exit status: 0 finished, 75 asked to stop. An error ends the process
    with its own status, 2 for settings at fault and else 1. Signals are requests to stop, and so
    are lines of `stop_file` (jobs/stop_file.py)."""
    with stop_requests(config.stop_timeout_seconds) as stop:
        return run(config, stop, stop_file)


def run(config: RunConfig, stop: StopRequests, stop_file: Path | None = None) -> int:
    """`train` with the requests to stop given."""
    # These import torch and DeepSpeed, which take their time: a typo should not.
    from sid_scale.distill.loop import train as distil
    from sid_scale.estimate.flops import flop_by_update
    from sid_scale.evaluate.training import open_evaluation
    from sid_scale.jobs.journal import Journal
    from sid_scale.jobs.stop_file import watched
    from sid_scale.ranks import joined_ranks

    journal = Journal(config.run_dir)
    with joined_ranks(config.collective_timeout_seconds, journal.failed) as ranks:
        journal.open(ranks)
        # One rank a node: where launchers are started on each, each has a file of its own.
        asked = stop_file if os.environ["LOCAL_RANK"] == "0" else None
        with (
            watched(asked) if asked else nullcontext(),
            _locked_by_first_rank(Path(config.run_dir)) as messages,
        ):
            progress = distil(
                config,
                ranks,
                stop,
                open_evaluation=open_evaluation,
                count_flop=flop_by_update,
                messages=messages,
            )
        finished = progress.images_seen >= config.total_images
        if ranks.is_first:
            kind = FINISHED if finished else STOPPED
            journal.ended(kind, "" if finished else stop.reason, progress.images_seen)
    return 0 if finished else EX_STOPPED


@contextmanager
def _locked_by_first_rank(run_dir: Path) -> Iterator[list[str]]:
    """Holds the run folder's lock while it lasts; yields messages for the log. Collective.

    Raises:
        LockedError: another run writes to the run folder.
    """
    from sid_scale.jobs.lock import locked
    from sid_scale.ranks import on_first_rank

    with ExitStack() as held:
        yield on_first_rank(lambda: held.enter_context(locked(run_dir)))


def main(arguments: Sequence[str] | None = None) -> int:
    """`sid-scale train`, for launchers; returns the exit status."""
    return cli.main(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
