"""Programs started as users start them, and what they leave in a folder."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

Start = Callable[..., subprocess.Popen[str]]

PATIENCE = 300.0  # seconds; nothing but a hang takes so long, on a busy machine either

# A run that says that it iterates. Its first update lasts until a rank is asked to stop, and each
# then takes SECONDS longer.
SLOW = """
import sys, time
from pathlib import Path
from sid_scale.distill import loop
from sid_scale.jobs.stop import StopRequests
from sid_scale.train import main

def receive(requests, number, receive=StopRequests.receive):
    receive(requests, number)
    Path("asked").touch()

def slow(run, update, stream, meter, apply=loop.apply):
    Path("iterating").touch()
    while not Path("asked").exists():
        time.sleep(0.01)
    time.sleep(SECONDS)
    return apply(run, update, stream, meter)

StopRequests.receive = receive
loop.apply = slow
sys.exit(main())
"""


def write_slow_run(path: Path, seconds: float) -> None:
    """A program that trains as `sid_scale.train` does, and is slow to stop when it is asked to:
    each update takes `seconds` longer."""
    path.write_text(SLOW.replace("SECONDS", f"{seconds:g}"))


def start(
    command: list[str], folder: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Starts a command in a session of its own, its errors among its output."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.05)
