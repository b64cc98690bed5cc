"""A launcher under which a run has all the time that its iteration takes to stop.

DeepSpeed's launcher answers Ctrl-C and SIGTERM by killing its ranks 30 seconds later, on other
nodes too, which an iteration of a large network outlasts. So no signal reaches it here: it runs
in a session of its own, with the signals blocked, and requests reach the ranks by a file.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sid_scale.errors import UsageError
from sid_scale.jobs.stop import SAME_REQUEST_SECONDS, SIGNALS
from sid_scale.jobs.stop_file import request, stop_file

POLL_SECONDS = 0.2
END_SECONDS = 10.0  # that the ranks have to end at once, before they are killed


def launch(command: Sequence[str]) -> int:
    """Runs the command of a launcher; returns its exit status.

    The first SIGINT, SIGTERM, SIGUSR1 or SIGHUP asks the run to stop after its iteration; the same
    one again ends it.

    Raises:
        UsageError: the command cannot be started, or requests have no place.
    """
    asking = set(SIGNALS)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with stop_file(Path.cwd()) as file:
        try:
            process = subprocess.Popen(
                [*command, "--stop-file", str(file)],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{command[0]} cannot be started: {error.strerror}") from error
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
            asking.add(signal.SIGHUP)
        status = _pass_on_requests(process, asking, file)
    return status if status >= 0 else 128 - status


def _pass_on_requests(
    process: "subprocess.Popen[bytes]", asking: set[signal.Signals], file: Path
) -> int:
    """Waits for the end of the process, whose exit status is returned."""
    first: dict[int, float] = {}  # signal -> when it came first
    deadline: float | None = None
    while (status := process.poll()) is None:
        now = time.monotonic()
        if deadline is not None and now > deadline:
            _say(f"no end within {END_SECONDS:g} s: killed; other nodes' ranks end when they print")
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        if (received := signal.sigtimedwait(asking, POLL_SECONDS)) is None:
            continue
        number, now = received.si_signo, time.monotonic()
        again = number in first
        if again and now - first[number] <= SAME_REQUEST_SECONDS:
            continue
        name = signal.Signals(number).name
        if again:
            _say(f"{name} again: the run ends now")
            deadline = deadline or now + END_SECONDS
        else:
            _say(f"{name}: the run is asked to stop after its iteration; again ends it at once")
            first[number] = now
        try:
            request(file, number if number in SIGNALS else signal.SIGTERM)
        except OSError as error:
            _say(f"error: the run cannot be asked, {file} cannot be written to: {error.strerror}")
    return status


def _say(message: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(message, file=sys.stderr, flush=True)
