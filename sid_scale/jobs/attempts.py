"""The attempts of a run, as `RUN_DIR/logs/` records them.

A run that is requeued is started several times. Each attempt has a folder there, named after its
job and how often that was started again, or after the time. Rank 0 writes `outcome.json` in it at
the end, or the rank that fails first; an attempt without one was killed, or is still running.
"""

import json
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter

from sid_scale.atomic import atomic_write
from sid_scale.jobs.slurm import Job

T = TypeVar("T")

LOGS = "logs"
OUTCOME = "outcome.json"
NODES = "nodes.json"
NODE_END = "node-{}.json"

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
    sick_nodes: tuple[str, ...] = ()  # that are to blame

    def __str__(self) -> str:
        seen = "" if self.images_seen is None else f" at {self.images_seen:,} images"
        where = f" ({self.where})" if self.where else ""
        return f"{self.kind}{seen}" + (f": {self.reason}" if self.reason else "") + where


def read_record(file: Path, kind: type[T]) -> T | None:
    """What a JSON file holds, by its types; None: it is not there, or holds something else."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes(), strict=True)
    except (OSError, ValueError):
        return None


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
    return read_record(attempt / OUTCOME, Outcome)


class Start(NamedTuple):
    """How an attempt of a job began."""

    time: float  # seconds since 1970
    nodes: list[str]
    judged: bool = False  # whether its end was looked at, for nodes that are to blame


def write_start(attempt: Path, start: Start) -> None:
    """Writes how an attempt began, atomically, in its folder, which is made."""
    attempt.mkdir(parents=True, exist_ok=True)
    with atomic_write(attempt / NODES) as partial:
        partial.write_text(json.dumps(start._asdict()) + "\n")


def read_start(attempt: Path) -> Start | None:
    """How an attempt began; None: that is not recorded."""
    return read_record(attempt / NODES, Start)


class NodeEnd(NamedTuple):
    """How a node's task ended."""

    status: int
    killed_for_memory: bool  # whether a process of the node was, meanwhile

    @property
    def signal(self) -> signal.Signals | None:
        """What ended a process of it, if something did."""
        return signal_of(self.status)


def signal_of(status: int) -> signal.Signals | None:
    """The signal that ended a process, by an exit status that tells of it."""
    # 128 + N is a shell's way to say that signal N ended a process; the launcher's is -N, of which
    # 256 - N is left.
    number = status - 128 if status < 192 else 256 - status
    known = 128 < status < 255 and number in signal.valid_signals()
    return signal.Signals(number) if known else None


def write_node_end(attempt: Path, node: str, end: NodeEnd) -> None:
    """Writes how the task of a node ended, atomically."""
    with atomic_write(attempt / NODE_END.format(node)) as partial:
        partial.write_text(json.dumps(end._asdict()) + "\n")


def node_ends(attempt: Path) -> dict[str, NodeEnd]:
    """How the nodes' tasks ended, by node; those that were killed are missing."""
    prefix, suffix = NODE_END.split("{}")
    ends = {}
    for file in attempt.glob(NODE_END.format("*")):
        end = read_record(file, NodeEnd)
        if end is not None:  # all of it is there
            ends[file.name.removeprefix(prefix).removesuffix(suffix)] = end
    return ends


def newest_attempt(run_dir: Path) -> Path | None:
    """The attempt that began last, other than those that were refused."""
    attempts: list[tuple[float, Path]] = []
    for attempt in (run_dir / LOGS).glob("*/"):
        outcome = read_outcome(attempt)
        if outcome is None or outcome.kind != REFUSED:
            attempts.append((attempt.stat().st_mtime, attempt))
    return max(attempts)[1] if attempts else None
