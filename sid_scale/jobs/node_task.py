"""`python -m sid_scale.jobs.node_task FOLDER COMMAND ...`: a node's task, and how it ended.

A scheduler signals every process of a job. The `deepspeed` command dies of SIGUSR1 and SIGTERM,
which ends the job, and its launcher passes SIGTERM on and kills the ranks 30 seconds later. So
the signals are blocked for both; the ranks, which inherit that, unblock them once they can
answer (jobs/stop.py), and none that came before is lost.

FOLDER gets a file `node-NAME.json`: a process that is killed leaves no word itself.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sid_scale.devices import node_name
from sid_scale.jobs.attempts import NodeEnd, node_ends, write_node_end
from sid_scale.jobs.stop import SIGNALS

# For other nodes to say how they ended. A busy one is slow to, and one that SLURM has killed
# meanwhile could be taken for sick.
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.2
VMSTAT = Path("/proc/vmstat")


def main() -> int:
    """Runs the command; returns its exit status."""
    if len(sys.argv) < 3:
        usage = "usage: python -m sid_scale.jobs.node_task FOLDER COMMAND [ARGUMENT ...]"
        print(usage, file=sys.stderr)
        return 2
    attempt, command = Path(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    killed_before = _killed_for_memory()
    try:
        status = subprocess.call(command)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error}", file=sys.stderr)
        return 127
    status = status if status >= 0 else 128 - status
    try:
        write_node_end(attempt, node_name(), NodeEnd(status, _killed_for_memory() > killed_before))
        if status:
            _wait_for_others(attempt)
    except OSError as error:
        print(f"error: {attempt} cannot be written to: {error}", file=sys.stderr)
    return status


def _wait_for_others(attempt: Path) -> None:
    """Lets the other nodes say how they ended: SLURM kills their tasks when one has failed."""
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    deadline = time.monotonic() + WAIT_SECONDS
    while len(node_ends(attempt)) < nodes and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _killed_for_memory() -> int:
    """Processes that this machine has killed for want of memory since it was started."""
    try:
        counts = dict(line.split() for line in VMSTAT.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
