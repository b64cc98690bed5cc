"""Signals are requests to stop; a rank that cannot answer is made to end."""

import signal
import subprocess
import sys

import pytest

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

ANSWERS = """
import os, signal, sys, time
print("started", flush=True)
sys.stdin.readline()
from sid_scale.jobs.stop import stop_requests
with stop_requests(60) as requests:
    while not requests.asked():
        time.sleep(0.01)
    print(requests.reason)
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
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert "no end within 0.5 s" in told


@pytest.mark.faults
def test_a_second_signal_ends_it_at_once(tmp_path):
    with start("-c", WAITS, "600", "0") as process:
        wait_for(process, "waiting")
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "SIGTERM: stopping after this iteration\n"
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "asked again" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_the_ranks_can_answer_is_not_lost(number: signal.Signals):
    with start(
        "-m", "sid_scale.jobs.block_signals", sys.executable, "-u", "-c", ANSWERS
    ) as process:
        wait_for(process, "started")
        process.send_signal(number)
        told, _ = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert told == f"{number.name}\n"


def test_what_cannot_be_started_is_told():
    with start("-m", "sid_scale.jobs.block_signals", "no-such-program") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 127
    assert "error: no-such-program cannot be started" in told
