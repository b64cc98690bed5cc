"""Ranks that lose one of them end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import free_port

pytestmark = [pytest.mark.distributed, pytest.mark.faults]

# The group is one that DeepSpeed could have made: with torch's own limit of half an hour.
VANISHES = """
import os, signal, sys
import torch, torch.distributed as dist
from sid_scale.ranks import joined_ranks, limit_waiting
with joined_ranks(4) as ranks:
    group = dist.new_group()
    limit_waiting(4)
    if ranks.rank == int(sys.argv[1]):
        print("vanishes", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1), group=group)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_silent_without_being_gone_ends_the_others(tmp_path: Path, victim: int):
    (tmp_path / "vanish.py").write_text(VANISHES)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(tmp_path / "vanish.py"), str(victim)]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        told, _ = processes[1 - victim].communicate(timeout=120)  # not 1800 seconds
        assert processes[1 - victim].returncode == 1, told
        assert processes[victim].poll() is None  # it was not its end that told
    finally:
        for process in processes:
            process.kill()
            process.communicate()


LEAVES = """
import threading
from sid_scale.ranks import joined_ranks
with joined_ranks():
    assert "watch" in [thread.name for thread in threading.enumerate()]
assert "watch" not in [thread.name for thread in threading.enumerate()]
"""


def test_nobody_asks_the_store_when_the_interpreter_ends():
    # It would abort, now and then.
    left = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True)
    assert left.returncode == 0, left.stderr


FAILS = """
from sid_scale.errors import UsageError
from sid_scale.ranks import joined_ranks
with joined_ranks():
    raise UsageError("a setting is at fault")
"""

MEETS = """
import sys
from sid_scale.errors import SidScaleError, print_once
from sid_scale.ranks import joined_ranks
try:
    with joined_ranks():
        pass
except SidScaleError as error:
    print_once(error)
    sys.exit(error.exit_status)
"""


def run_alone(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_settings_at_fault_end_ranks_with_their_own_status():
    left = run_alone(FAILS)
    assert (left.returncode, left.stderr.count("error: a setting is at fault")) == (2, 1)


@pytest.mark.parametrize(
    ("address", "port", "why"),
    [
        ("127.0.0.1", None, "another program uses the port"),
        ("nowhere.invalid", "29500", "does not resolve"),
        ("127.0.0.1", "many", "a port is a number"),
    ],
)
def test_where_ranks_cannot_meet_is_told_at_once(address: str, port: str | None, why: str):
    with socket.create_server(("", 0)) as taken:
        port = port or str(taken.getsockname()[1])
        left = run_alone(MEETS, RANK="0", WORLD_SIZE="2", MASTER_ADDR=address, MASTER_PORT=port)
    assert left.returncode == 2, left.stderr
    assert why in left.stderr
    assert "--master_port" in left.stderr
    assert "SID_SCALE_PORT" in left.stderr
    assert "Traceback" not in left.stderr
