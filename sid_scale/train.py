"""Entry point: `deepspeed --module sid_scale.train --config run.yaml [key=value ...]`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sid_scale.config.run import RunConfig, load_config, preset_names
from sid_scale.errors import SidScaleError
from sid_scale.jobs.attempts import FINISHED, STOPPED
from sid_scale.jobs.stop import EX_STOPPED, StopRequests, stop_requests
from sid_scale.ranks import joined_ranks, tell_once


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="deepspeed --module sid_scale.train",
        description="Distils an EDM2 teacher into a one-step generator.",
        epilog=f"Presets: {', '.join(preset_names())}.",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a preset")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; returns the exit status: 0 finished, 75 asked to stop, 2 settings at fault."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        config = load_config(options.config, options.overrides)
    except SidScaleError as error:
        tell_once(error)
        return 2
    with stop_requests(config.stop_timeout_seconds) as stop:
        return run(config, stop)


@contextmanager
def held_by_first_rank(run_dir: Path) -> Iterator[list[str]]:
    """Holds the run folder's lock while it lasts; yields messages for the log. Collective.

    Raises:
        LockedError: another run writes to the run folder.
    """
    from sid_scale.jobs.lock import locked
    from sid_scale.ranks import on_first_rank

    with ExitStack() as held:
        yield on_first_rank(lambda: held.enter_context(locked(run_dir)))


def run(config: RunConfig, stop: StopRequests) -> int:
    """Trains; returns the exit status. An error ends the process with status 1."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # These import torch and DeepSpeed, which take their time: a typo should not.
    from sid_scale.distill.loop import train
    from sid_scale.evaluate.training import open_evaluation
    from sid_scale.jobs.journal import Journal

    journal = Journal(config.run_dir)
    with joined_ranks(config.collective_timeout_seconds, journal.failed) as ranks:
        journal.open(ranks)
        with held_by_first_rank(Path(config.run_dir)) as messages:
            progress = train(
                config, ranks, stop, open_evaluation=open_evaluation, messages=messages
            )
        finished = progress.images_seen >= config.total_images
        if ranks.is_first:
            kind = FINISHED if finished else STOPPED
            journal.ended(kind, "" if finished else stop.reason, progress.images_seen)
    return 0 if finished else EX_STOPPED


if __name__ == "__main__":
    sys.exit(main())
