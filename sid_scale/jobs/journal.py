"""Writes what an attempt of a run leaves: how it ended and, in a job, each rank's log."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sid_scale.devices import is_fault_of_device, node_name
from sid_scale.errors import SidScaleError, launched_rank
from sid_scale.jobs.attempts import (
    FAILED,
    OUTCOME,
    REFUSED,
    Outcome,
    attempt_folder,
    attempt_name,
    read_outcome,
    write_outcome,
)
from sid_scale.jobs.lock import LockedError
from sid_scale.jobs.slurm import Job, current_job
from sid_scale.jobs.stop import SIGNALS
from sid_scale.ranks import Ranks, on_first_rank


class JournalError(SidScaleError):
    """The run folder's logs cannot be written; the message says why."""


class Journal:
    """This rank's part in the journal of one attempt."""

    def __init__(self, run_dir: str | Path):
        self._run_dir = Path(run_dir)
        self._attempt: Path | None = None
        self._console: int | None = None  # where standard error went before it went to a log

    def open(self, ranks: Ranks) -> None:
        """Begins an attempt. In a job, what this rank prints goes to its log from here on; rank 0's
        to the console, that is the batch log, as well. Collective.

        Raises:
            JournalError: the folder cannot be made.
        """
        job = current_job()
        self._attempt = on_first_rank(lambda: _make_attempt(self._run_dir, job))
        if job is None:
            return
        self._console = os.dup(2)
        _send_output_to(self._attempt / f"rank-{ranks.rank}.log", echo=ranks.is_first)
        print(f"rank {ranks.rank} of {ranks.world_size} on {node_name()}, {time.ctime()}")
        if ranks.is_first:
            print(f"{job}; logs of all ranks: {self._attempt}", flush=True)
            if job.restarts:
                before = read_outcome(attempt_folder(self._run_dir, f"{job.id}-{job.restarts - 1}"))
                print(
                    f"the attempt before: {before or 'no outcome recorded (killed?)'}", flush=True
                )

    def ended(self, kind: str, reason: str, images_seen: int) -> None:
        """Records how this attempt has ended well. For rank 0 to call."""
        assert self._attempt is not None
        outcome = Outcome(kind, reason, images_seen=images_seen, time=time.time())
        write_outcome(self._attempt, outcome)

    def failed(self, error: BaseException, printed: str) -> None:
        """Tells of the error that ends all ranks, on the rank where it happened first."""
        attempt = self._attempt
        if attempt is None and (job := current_job()) is not None:  # before the ranks were joined
            attempt = _make_attempt(self._run_dir, job)
        if attempt is None:
            return  # it is on the console
        if launched_rank() and self._console is not None:
            os.write(self._console, printed.encode(errors="replace"))
        named = error.sick_nodes if isinstance(error, SidScaleError) else ()  # by every rank
        outcome = Outcome(
            REFUSED if isinstance(error, LockedError) else FAILED,
            str(error) or type(error).__name__,
            "" if named else f"rank {launched_rank()} on {node_name()}",
            isinstance(error, SidScaleError) and error.is_user_error,
            time=time.time(),
            sick_nodes=(node_name(),) if is_fault_of_device(error) else named,
        )
        write_outcome(attempt, outcome)


def _make_attempt(run_dir: Path, job: Job | None) -> Path:
    attempt = attempt_folder(run_dir, attempt_name(job))
    try:
        attempt.mkdir(parents=True, exist_ok=True)
        # In an allocation that outlives its runs, an earlier one's says nothing of this one.
        (attempt / OUTCOME).unlink(missing_ok=True)
        return attempt
    except OSError as error:
        raise JournalError(f"run_dir: {attempt} cannot be made: {error}") from error


def _send_output_to(file: Path, *, echo: bool) -> None:
    """Appends what this process prints from now on to a file, libraries' output included.

    With `echo` it goes where it went before as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if not echo:
        target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    else:
        # It ends when we do, and not before: signals to all of a job's processes pass it by.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        tee = subprocess.Popen(["tee", "-a", str(file)], stdin=subprocess.PIPE)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert tee.stdin is not None
        target = tee.stdin.fileno()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    if not echo:
        os.close(target)
