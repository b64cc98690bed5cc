"""What a scheduler says of the job that this process belongs to."""

import os
import subprocess
from typing import NamedTuple

WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")
OVER = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
    *("DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
)


class Job(NamedTuple):
    """A SLURM job, and how often it has been started again."""

    id: str
    restarts: int
    cluster: str = ""  # empty: not known

    def __str__(self) -> str:
        return f"SLURM job {self.id}" + (f", restart {self.restarts}" if self.restarts else "")


def current_job() -> Job | None:
    """The SLURM job that we are part of, if any."""
    environ = os.environ
    if not (job := environ.get("SLURM_JOB_ID")):
        return None
    restarts = int(environ.get("SLURM_RESTART_COUNT", "0"))
    return Job(job, restarts, environ.get("SLURM_CLUSTER_NAME", ""))


def is_running(job: str) -> bool | None:
    """Whether a SLURM job has processes; None: SLURM does not answer."""
    states = _states(job)
    return None if states is None else any(s not in (*WAITING, *OVER) for s in states)


def is_waiting(job: str) -> bool | None:
    """Whether a SLURM job is queued; None: SLURM does not answer."""
    states = _states(job)
    return None if states is None else any(s in WAITING for s in states)


def _states(job: str) -> list[str] | None:
    """A job's states (of an array, all), none if SLURM has forgotten it; None: no answer."""
    command = ["squeue", "--noheader", "--states=all", "--jobs", job, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return [] if "Invalid job id" in done.stderr else None
    return done.stdout.split()
