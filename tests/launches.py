"""Programs started as users start them, and what they leave in a folder."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

Start = Callable[..., subprocess.Popen[str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.05)
