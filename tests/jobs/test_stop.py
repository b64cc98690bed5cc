"""Signals are requests to stop; a rank that cannot answer is made to end."""

import signal
import subprocess
import sys

import pytest

from tests.launches import PATIENCE

# Waits as in a collective that nobody will finish: no Python runs in the main thread.
WAITS = """
import sys
import torch.distributed as dist
from datetime import timedelta
from sid_scale.jobs import stop
stop.SAME_REQUEST_SECONDS = float(sys.argv[2])
with stop.stop_requests(float(sys.argv[1])) as requests:
    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    print("waiting", flush=True)
    store.wait(["never"], timedelta(seconds=600))
"""


def start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.faults
def test_what_does_not_end_in_time_is_made_to(tmp_path):
    with start("-c", WAITS, "0.5", "60") as process:
        wait_for(process, "waiting")
        process.send_signal(signal.SIGUSR1)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGUSR1
    assert "no end within 0.5 s" in told


@pytest.mark.faults
def test_a_second_signal_ends_it_at_once(tmp_path):
    with start("-c", WAITS, "600", "0") as process:
        wait_for(process, "waiting")
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "SIGTERM: stopping after this iteration\n"
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "asked again" in told
