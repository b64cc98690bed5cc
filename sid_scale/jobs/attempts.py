"""The lives of a run, as `RUN_DIR/logs/` tells of them.

A run that is requeued lives several times. Each life has a folder there, named after its job and
how often that was started again, or after the time. `outcome.json` in it is written by rank 0 at
the end, or by the rank that fails first; a life without one ended without a word.
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
REFUSED = "refused"  # another run holds the folder


@dataclass(frozen=True)
class Outcome:
    """How a life ended."""

    kind: str  # FINISHED, STOPPED, FAILED or REFUSED
    reason: str = ""  # the signal, or the error
    where: str = ""  # rank and host of an error
    mendable: bool = False  # by whoever started it, and by nothing else: no use in trying again
    images_seen: int | None = None
    time: float = 0.0  # seconds since 1970

    def __str__(self) -> str:
        seen = "" if self.images_seen is None else f" at {self.images_seen:,} images"
        where = f" ({self.where})" if self.where else ""
        return f"{self.kind}{seen}" + (f": {self.reason}" if self.reason else "") + where


def life_name(job: Job | None) -> str:
    """Name of the folder of a life that begins now."""
    return time.strftime("%Y%m%d-%H%M%S") if job is None else f"{job.id}-{job.restarts}"


def job_of(life: Path) -> Job | None:
    """The job whose life has this folder; None: it was started by hand."""
    job, dash, restarts = life.name.partition("-")
    by_hand = len(restarts) == 6 and len(job) == 8  # the time
    return None if by_hand or not dash or not restarts.isdecimal() else Job(job, int(restarts))


def life_folder(run_dir: Path, name: str) -> Path:
    """Where the life of this name keeps its logs and outcome."""
    return run_dir / LOGS / name


def write_outcome(life: Path, outcome: Outcome) -> None:
    """Writes how a life ended, whole or not at all."""
    with atomic_write(life / OUTCOME) as partial:
        partial.write_text(json.dumps(asdict(outcome), indent=1) + "\n")


def read_outcome(life: Path) -> Outcome | None:
    """How a life ended; None: it has not, or without a word."""
    try:
        told: dict[str, Any] = json.loads((life / OUTCOME).read_text())
        return Outcome(**{f.name: told[f.name] for f in fields(Outcome)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_life(run_dir: Path) -> Path | None:
    """The life that began last, other than those that were refused."""
    lives: list[tuple[float, Path]] = []
    for life in (run_dir / LOGS).glob("*/"):
        outcome = read_outcome(life)
        if outcome is None or outcome.kind != REFUSED:
            lives.append((life.stat().st_mtime, life))
    return max(lives)[1] if lives else None
