"""Ranks that lose one of them end."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessExitedException

from sid_scale.errors import SidScaleError
from sid_scale.ranks import Ranks, while_others_wait
from tests.launches import PATIENCE
from tests.ranks import free_port, run_joined

pytestmark = [pytest.mark.distributed, pytest.mark.faults]

# The group is one that DeepSpeed could have made: with torch's own limit of half an hour. The ranks
# join together, however long each takes to start.
VANISHES = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from sid_scale.ranks import joined_ranks, limit_waiting
Path("started" + os.environ["RANK"]).touch()
while not all(Path(f"started{rank}").exists() for rank in (0, 1)):
    time.sleep(0.01)
with joined_ranks(10) as ranks:
    group = dist.new_group()
    limit_waiting(10)
    if ranks.rank == int(sys.argv[1]):
        Path("vanishes").touch()
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
            cwd=tmp_path,
        )
        for rank in (0, 1)
    ]
    try:
        told, _ = processes[1 - victim].communicate(timeout=PATIENCE)  # not 1800 seconds
        assert processes[1 - victim].returncode == 1, told
        assert (tmp_path / "vanishes").exists()
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


# A busy machine lets rank 1 sleep just when all are done.
SLOW_TO_LEAVE = """
import os, time
import torch.distributed as dist
from sid_scale.ranks import joined_ranks

def barrier(real=dist.barrier):
    real()
    if os.environ["RANK"] == "1":
        time.sleep(4)

dist.barrier = barrier
with joined_ranks():
    pass
"""


def test_a_rank_that_is_slow_to_leave_has_not_failed():
    left = run_all(SLOW_TO_LEAVE, 0, 1)
    assert [rank.returncode for rank in left] == [0, 0], left


# A busy machine lets rank 1 look for failures long after rank 0 has failed.
SLOW_TO_LEARN = """
import os, time
import torch.distributed as dist
from sid_scale.errors import UsageError
from sid_scale.ranks import joined_ranks

class SlowStore(dist.TCPStore):
    def check(self, keys):
        time.sleep(4)
        return super().check(keys)

if os.environ["RANK"] == "1":
    dist.TCPStore = SlowStore
with joined_ranks() as ranks:
    if ranks.is_first:
        raise UsageError("a setting is at fault")
    time.sleep(3000)
"""


def test_a_rank_that_learns_late_of_an_error_ends_with_its_status():
    left = run_all(SLOW_TO_LEARN, 0, 1)
    assert [rank.returncode for rank in left] == [2, 2], left


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
        timeout=PATIENCE,
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


# Two GPUs, which nothing here computes on.
PLAYED = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda.set_device = lambda device: None
"""


def run_all(program: str, *local_ranks: int) -> list[subprocess.CompletedProcess]:
    """The program on as many ranks, which meet."""
    place = {"WORLD_SIZE": str(len(local_ranks)), "MASTER_ADDR": "127.0.0.1"}
    place["MASTER_PORT"] = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(local_rank)},
        )
        for rank, local_rank in enumerate(local_ranks)
    ]
    told = [process.communicate(timeout=PATIENCE) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, told, strict=True)
    ]


# A rank with a GPU waits for those without, as over NCCL.
WAITS = """
import time
import torch.distributed as dist
dist.init_process_group = lambda *_, **__: time.sleep(3000)
"""


def test_a_rank_beyond_the_gpus_ends_all_with_one_error():
    left = run_all(PLAYED + WAITS + MEETS, 1, 2, 3)
    told = "".join(rank.stderr for rank in left)
    assert [rank.returncode for rank in left] == [2, 2, 2], told
    assert told.count("error:") == 1, told
    assert "has no GPU" in told
    assert "Traceback" not in told


# On the second node CUDA does not come up. The first would wait for it in NCCL.
HALF = """
import os, torch
node = int(os.environ["RANK"]) // 2
os.environ["SLURMD_NODENAME"] = f"node{1 + node}"
torch.cuda.is_available = lambda: node == 0
"""


def test_a_node_whose_gpus_have_vanished_is_to_blame():
    left = run_all(PLAYED + HALF + MEETS, 0, 1, 0, 1)
    told = "".join(rank.stderr for rank in left)
    assert [rank.returncode for rank in left] == [1, 1, 1, 1], told
    assert told.count("error:") == 1, told
    assert "rank 2 on node2: PyTorch sees no GPU there" in told
    assert "start without node2" in told
    assert "Traceback" not in told


def test_deepspeed_on_another_device_is_told_before_anything_else():
    left = run_alone(MEETS, DS_ACCELERATOR="cuda")
    assert left.returncode == 2, left.stderr
    told = [line for line in left.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "told by DS_ACCELERATOR=cuda to take cuda, and PyTorch sees no GPU here" in told[0]
    assert "Traceback" not in left.stderr


BINDS = """
import deepspeed, torch.distributed as dist
from sid_scale import ranks
given = {}
dist.init_process_group = lambda backend, **options: given.update(options, backend=backend)
dist.barrier = dist.destroy_process_group = lambda: None
ranks.check_accelerator = lambda device: None
deepspeed.init_distributed = lambda **options: None
with ranks.joined_ranks():
    print(given["backend"], given["device_id"], "__compatible_ops__" in vars(deepspeed.ops))
"""


@pytest.mark.parametrize(("ranks", "bound"), [(1, ["None"]), (2, ["cuda:0", "cuda:1"])])
def test_nccl_is_told_its_devices_and_no_compiler_is_tried_out(ranks: int, bound: list[str]):
    left = run_all(PLAYED + BINDS, *range(ranks))
    assert [rank.stdout.split() for rank in left] == [["nccl", b, "False"] for b in bound], left


def _works(ranks: Ranks, file: Path) -> None:
    done = file.with_name("done")

    def work() -> str:
        time.sleep(0.3)  # several times as long as between two signs of life
        done.touch()
        return "done"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sid_scale.ranks.WORKING_SECONDS", 0.05)
        assert while_others_wait(work if ranks.rank == 1 else None) == (
            "done" if ranks.rank == 1 else None
        )
        assert done.is_file()  # the other rank has waited
        try:
            while_others_wait(_fails if ranks.rank == 1 else None)
        except SidScaleError as error:
            file.write_text(f"{ranks.rank} {error}")
            raise
        time.sleep(PATIENCE)  # the others are ended


def _fails() -> None:
    raise SidScaleError("the hub is not there")


def test_ranks_wait_for_one_that_works_and_end_if_it_fails(tmp_path: Path):
    with pytest.raises(ProcessExitedException):
        run_joined(2, _works, tmp_path / "error")
    assert (tmp_path / "error").read_text() == "1 the hub is not there"
