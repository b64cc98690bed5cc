"""Nodes that a run's jobs leave out for a day: `python -m sid_scale.jobs.sick_nodes WHEN ...`.

A node is sick whose device has failed (`Outcome.sick_nodes`), on which a signal ended a rank, or
that SLURM lost while a job ran there. `sick_nodes.json` in the run folder says since when, and why.

WHEN is `begin`, when a job starts: looks for nodes that the attempt before has lost, and prints the
folder of the new one; exit status 75 if the job has a sick node that it can do without, and should
be queued again. Or `leave-out`, before it is queued again: prints the whole list of nodes that it
is then to leave out, for SLURM's ExcNodeList, or `same`. Both read what SLURM knows (nodes.py).
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sid_scale.atomic import atomic_write
from sid_scale.config.run import load_config
from sid_scale.errors import SidScaleError
from sid_scale.jobs.attempts import (
    FAILED,
    STOPPED,
    NodeEnd,
    Outcome,
    Start,
    attempt_folder,
    attempt_name,
    node_ends,
    read_outcome,
    read_record,
    read_start,
    write_outcome,
    write_start,
)
from sid_scale.jobs.nodes import Cluster, read_cluster
from sid_scale.jobs.slurm import Job, current_job

SICK_NODES = "sick_nodes.json"
AGAIN = os.EX_TEMPFAIL
DAY = 24 * 3600.0
MOST = 3  # nodes that are left out at a time
STARTS = 2  # that a job gives up for having a sick node: SLURM may not listen
# What ends a rank from outside, or for the machine's sake. Programs themselves abort, and a rank
# whose collective fails does, wherever the cause is.
DEADLY = (signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV)


@dataclass
class SickNode:
    """Why a node is left out."""

    since: float  # seconds since 1970
    why: str
    starts_given_up: int = 0  # by jobs that had it

    def is_over(self, now: float) -> bool:
        # A day ahead is another clock's error, or no number.
        return not abs(now - self.since) < DAY


@dataclass
class SickNodes:
    """What a run knows of sick nodes."""

    nodes: dict[str, SickNode] = field(default_factory=dict)
    job: str = ""
    left_out: list[str] = field(default_factory=list)  # of that job, for our sake

    def add(self, sick: Mapping[str, str], now: float) -> list[str]:
        """Takes in what was found, by node; returns lines about it."""
        for name, why in sick.items():
            self.nodes[name] = SickNode(now, why)
        return [f"{name} is sick: {why}" for name, why in sick.items()]

    def users(self, cluster: Cluster) -> list[str]:
        """The nodes that a job leaves out for its user's sake."""
        ours = self.left_out if self.job == cluster.job else []
        return [name for name in cluster.excluded if name not in ours]

    def to_leave_out(self, cluster: Cluster, now: float) -> tuple[list[str], list[str]]:
        """The nodes that a job is to leave out besides, and lines about them."""
        users = self.users(cluster)
        chosen: list[str] = []
        messages = []
        newest_first = sorted(self.nodes.items(), key=lambda item: -item[1].since)
        for name, sick in newest_first:
            if sick.is_over(now):
                if name in self.left_out:
                    messages.append(f"{name} is used again: it was left out for a day")
            elif name not in users:
                enough = cluster.can_do_without(name, [*users, *chosen])
                if enough and len(chosen) < MOST:
                    chosen.append(name)
                    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(sick.since + DAY))
                    messages.append(f"{name} is left out until {until}: {sick.why}")
                else:
                    reason = f"{MOST} are left out" if enough else "the job needs it to start"
                    messages.append(f"{name} is sick, but not left out: {reason}")
        return chosen, messages


def found_at_end(
    outcome: Outcome | None, ends: Mapping[str, NodeEnd], nodes: Sequence[str]
) -> dict[str, str]:
    """The nodes that are to blame for the end of an attempt on `nodes`, and why."""
    if outcome is not None and (outcome.kind != FAILED or outcome.is_user_error):
        return {}
    if outcome is not None and outcome.sick_nodes:
        return dict.fromkeys(outcome.sick_nodes, outcome.reason.partition("\n")[0])
    killed = {name: end for name, end in ends.items() if end.signal in DEADLY}
    if len(killed) >= len(nodes):
        return {}  # what all nodes have is not their fault
    return {
        name: f"{signal.Signals(end.signal).name} ended a rank"  # type: ignore[arg-type]
        for name, end in killed.items()
        if not end.killed_for_memory  # which the run needs on any node
    }


def found_lost(start: Start | None, cluster: Cluster) -> dict[str, str]:
    """The nodes that SLURM has lost since an attempt began, unless its end was looked at."""
    if start is None or start.judged:
        return {}
    lost = [
        name
        for name in start.nodes
        if name in cluster.nodes and cluster.nodes[name].is_lost_since(start.time)
    ]
    return dict.fromkeys(lost, "SLURM lost it")


def judge_end(run_dir: Path, attempt: Path) -> list[str]:
    """Takes in what the end of an attempt says of its nodes; returns lines about it."""
    start = read_start(attempt)
    if start is None:
        return []
    write_start(attempt, start._replace(judged=True))
    ends = node_ends(attempt)
    memory = [name for name, end in ends.items() if end.killed_for_memory and end.signal]
    messages = [f"{name} ran out of host memory, which is not its fault" for name in memory]
    sick = found_at_end(read_outcome(attempt), ends, start.nodes)
    return messages + _add(run_dir, sick, time.time())


def begin(run_dir: Path, job: Job, cluster: Cluster, now: float) -> tuple[bool, list[str]]:
    """Begins an attempt; returns whether the job should be queued again instead, and why."""
    messages = _judge_before(run_dir, job, cluster, now)
    attempt = attempt_folder(run_dir, attempt_name(job))
    write_start(attempt, Start(now, list(cluster.nodes_of_job)))
    known = read_sick_nodes(run_dir)
    chosen, _ = known.to_leave_out(cluster, now)
    here = [name for name in cluster.nodes_of_job if name in chosen]
    again = [name for name in here if known.nodes[name].starts_given_up < STARTS]
    for name in again:
        known.nodes[name].starts_given_up += 1
    if again:
        _write(run_dir, known)
        write_outcome(attempt, Outcome(STOPPED, f"{', '.join(again)} is sick", time=now))
    fate = "queued again without it" if again else "used, for SLURM gives it again and again"
    messages += [f"{name} is sick ({known.nodes[name].why}): {fate}" for name in here]
    return bool(again), messages


def leave_out(run_dir: Path, job: Job, cluster: Cluster, now: float) -> tuple[list[str], list[str]]:
    """The nodes that the job is to leave out when it is queued again, and lines for the log."""
    messages = _judge_before(run_dir, Job(job.id, job.restarts + 1), cluster, now)
    known = read_sick_nodes(run_dir)
    chosen, about = known.to_leave_out(cluster, now)
    excluded = [*known.users(cluster), *chosen]
    if chosen or known.left_out:
        # Before SLURM is told: what it then leaves out besides is the user's.
        known.job, known.left_out = cluster.job, chosen
        _write(run_dir, known)
    return excluded, messages + about


def _judge_before(run_dir: Path, job: Job, cluster: Cluster, now: float) -> list[str]:
    """Looks for nodes that the attempt before has lost: SLURM then ends and requeues the job."""
    if not job.restarts or not cluster.job:
        return []
    attempt = attempt_folder(run_dir, f"{job.id}-{job.restarts - 1}")
    start = read_start(attempt)
    messages = _add(run_dir, found_lost(start, cluster), now)
    if start is not None and not start.judged:
        write_start(attempt, start._replace(judged=True))
    return messages


def _add(run_dir: Path, sick: Mapping[str, str], now: float) -> list[str]:
    if not sick:
        return []
    known = read_sick_nodes(run_dir)
    messages = known.add(sick, now)
    _write(run_dir, known)
    return messages


def read_sick_nodes(run_dir: Path) -> SickNodes:
    """What a run knows of sick nodes; nothing if it has no such file, or a damaged one."""
    return read_record(run_dir / SICK_NODES, SickNodes) or SickNodes()


def _write(run_dir: Path, known: SickNodes) -> None:
    with atomic_write(run_dir / SICK_NODES) as partial:
        partial.write_text(json.dumps(asdict(known), indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sid_scale.jobs.sick_nodes", description=__doc__
    )
    parser.add_argument("when", choices=("begin", "leave-out"))
    parser.add_argument("--config", required=True, help="as given to sid_scale.train")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    try:
        run_dir = Path(load_config(options.config, options.overrides).run_dir)
        cluster, job, now = read_cluster(sys.stdin.read()), current_job(), time.time()
        if job is None:
            raise SidScaleError("SLURM_JOB_ID is not set: this is for the job's own script")
        again = False
        if options.when == "begin":
            again, messages = begin(run_dir, job, cluster, now)
            print(attempt_folder(run_dir, attempt_name(job)).resolve())
        else:
            excluded, messages = leave_out(run_dir, job, cluster, now)
            print("same" if {*excluded} == {*cluster.excluded} else ",".join(excluded))
    except (SidScaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for message in messages:
        print(message, file=sys.stderr, flush=True)
    return AGAIN if again else 0


if __name__ == "__main__":
    sys.exit(main())
