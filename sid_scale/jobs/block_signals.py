"""`python -m sid_scale.jobs.block_signals COMMAND ...`: a command with stop signals blocked.

A scheduler signals every process of a job. The `deepspeed` command dies of SIGUSR1 and SIGTERM,
which ends the job, and its launcher passes SIGTERM on and kills the ranks 30 seconds later. So
the signals are blocked for both; the ranks, which inherit that, unblock them once they can
answer (jobs/stop.py), and none that came before is lost.
"""

import os
import signal
import sys

from sid_scale.jobs.stop import SIGNALS


def main() -> int:
    """Becomes the command."""
    command = sys.argv[1:]
    if not command:
        print(
            "usage: python -m sid_scale.jobs.block_signals COMMAND [ARGUMENT ...]", file=sys.stderr
        )
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
