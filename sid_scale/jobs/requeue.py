"""What becomes of a job whose run has ended: `python -m sid_scale.jobs.requeue --config RUN.yaml`.

Exit status 0: finished. 75: to be queued again. Anything else: failed, and why is printed.

A run that was asked to stop, or that broke off, is worth another start; one whose error is the
user's to mend is not, and neither is one that keeps ending where the start before had ended. That
is seen by the newest checkpoint: `requeues.json` in the run folder records it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sid_scale.atomic import atomic_write
from sid_scale.config.run import load_config
from sid_scale.errors import SidScaleError
from sid_scale.jobs.attempts import (
    FINISHED,
    NO_OUTCOME,
    Outcome,
    attempt_folder,
    attempt_name,
    read_outcome,
    read_record,
    signal_of,
)
from sid_scale.jobs.sick_nodes import judge_end
from sid_scale.jobs.slurm import current_job

REQUEUES = "requeues.json"
AGAIN = os.EX_TEMPFAIL
LIMIT = 3  # requeues in a row without progress
# Of a run that says nothing: settings at fault; a program that cannot be started or is not there.
USER_ERRORS = (2, 126, 127)


class Decision(NamedTuple):
    """What becomes of the job."""

    status: int  # exit status: 0, AGAIN or that of a failure
    message: str


class Requeues(NamedTuple):
    """What is remembered between the starts of a run."""

    images_seen: int = -1  # by the newest checkpoint; -1: there was none
    in_vain: int = 0  # requeues since it was the newest


def decide(
    outcome: Outcome | None, status: int, newest: int, before: Requeues, limit: int
) -> tuple[Decision, Requeues]:
    """What becomes of a job that ended with `status` and `outcome` (None: none recorded), with
    its newest checkpoint at `newest` images (-1: none)."""
    if outcome is not None and outcome.kind == FINISHED:
        return Decision(0, f"{outcome}"), Requeues()
    how = f"{outcome or NO_OUTCOME} ({_meaning(status)})"
    failure = status or 1
    if (outcome is not None and outcome.is_user_error) or (
        outcome is None and status in USER_ERRORS
    ):
        return Decision(failure, f"{how}; not queued again: the error needs mending"), before
    in_vain = before.in_vain + 1 if newest <= before.images_seen else 0
    if in_vain >= limit:
        why = f"{limit} starts in a row have come no further than {max(newest, 0):,} images"
        return Decision(failure, f"{how}; not queued again: {why}"), Requeues()
    at = f"from {newest:,} images" if newest >= 0 else "from the start: there is no checkpoint"
    return Decision(AGAIN, f"{how}; queued again, to go on {at}"), Requeues(newest, in_vain)


def _meaning(status: int) -> str:
    """An exit status in words: a killed process reports nothing."""
    number = signal_of(status)
    told = "" if number is None else f": a process was ended by {number.name}"
    return f"status {status}{told}"


def newest_checkpoint(run_dir: Path) -> int:
    """Images seen at the newest complete checkpoint; -1: there is none."""
    names = (p.parent.name for p in (run_dir / "checkpoints").glob("*/manifest.json"))
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sid_scale.jobs.requeue", description=__doc__)
    parser.add_argument("--config", required=True, help="as given to sid_scale.train")
    parser.add_argument("--status", required=True, type=int, help="that the run ended with")
    parser.add_argument(
        "--limit",
        type=int,
        default=os.environ.get("SID_SCALE_REQUEUES", str(LIMIT)),
        help="requeues in a row that may bring nothing (SID_SCALE_REQUEUES, or %(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        run_dir = Path(load_config(options.config, options.overrides).run_dir)
        attempt = attempt_folder(run_dir, attempt_name(current_job()))
        before, newest = _read(run_dir), newest_checkpoint(run_dir)
        outcome = read_outcome(attempt)
        decision, after = decide(outcome, options.status, newest, before, options.limit)
        messages = judge_end(run_dir, attempt)
        if after != before:  # a job that was refused leaves what is another's
            run_dir.mkdir(parents=True, exist_ok=True)
            with atomic_write(run_dir / REQUEUES) as partial:
                partial.write_text(json.dumps(after._asdict()) + "\n")
    except (SidScaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return options.status or 1
    print("\n".join([*messages, decision.message]), flush=True)
    return decision.status


def _read(run_dir: Path) -> Requeues:
    return read_record(run_dir / REQUEUES, Requeues) or Requeues()


if __name__ == "__main__":
    sys.exit(main())
