"""The attempts of a run, as `RUN_DIR/logs/` records them.

A run that is requeued is started several times. Each attempt has a folder there, named after its
job and how often that was started again, or after the time. Rank 0 writes `outcome.json` in it at
the end, or the rank that fails first; an attempt without one was killed, or is still running.
"""

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sid_scale.atomic import atomic_write
from sid_scale.jobs.slurm import Job

LOGS = "logs"
OUTCOME = "outcome.json"

FINISHED = "finished"
STOPPED = "stopped"  # asked to, with a checkpoint; resume: auto goes on
FAILED = "failed"
NO_OUTCOME = "no outcome recorded (killed?)"
REFUSED = "refused"  # another run holds the folder


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    kind: str  # FINISHED, STOPPED, FAILED or REFUSED
    reason: str = ""  # the signal, or the error
    where: str = ""  # rank and host of an error
    is_user_error: bool = False  # settings or files are at fault: another attempt is no use
    images_seen: int | None = None
    time: float = 0.0  # seconds since 1970

    def __str__(self) -> str:
        seen = "" if self.images_seen is None else f" at {self.images_seen:,} images"
        where = f" ({self.where})" if self.where else ""
        return f"{self.kind}{seen}" + (f": {self.reason}" if self.reason else "") + where


def attempt_name(job: Job | None) -> str:
    """Name of the folder of an attempt that begins now."""
    return time.strftime("%Y%m%d-%H%M%S") if job is None else f"{job.id}-{job.restarts}"


def job_of(attempt: Path) -> Job | None:
    """The job whose attempt has this folder; None: it was started by hand."""
    job, dash, restarts = attempt.name.partition("-")
    by_hand = len(restarts) == 6 and len(job) == 8  # the time
    return None if by_hand or not dash or not restarts.isdecimal() else Job(job, int(restarts))


def attempt_folder(run_dir: Path, name: str) -> Path:
    """Where the attempt of this name keeps its logs and outcome."""
    return run_dir / LOGS / name


def write_outcome(attempt: Path, outcome: Outcome) -> None:
    """Writes how an attempt ended, atomically."""
    with atomic_write(attempt / OUTCOME) as partial:
        partial.write_text(json.dumps(asdict(outcome), indent=1) + "\n")


def read_outcome(attempt: Path) -> Outcome | None:
    """How an attempt ended; None: it has not, or recorded nothing."""
    try:
        stored: dict[str, Any] = json.loads((attempt / OUTCOME).read_text())
        return Outcome(**{f.name: stored[f.name] for f in fields(Outcome)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_attempt(run_dir: Path) -> Path | None:
    """The attempt that began last, other than those that were refused."""
    attempts: list[tuple[float, Path]] = []
    for attempt in (run_dir / LOGS).glob("*/"):
        outcome = read_outcome(attempt)
        if outcome is None or outcome.kind != REFUSED:
            attempts.append((attempt.stat().st_mtime, attempt))
    return max(attempts)[1] if attempts else None
