"""A node's task: deaf to a scheduler's signals, and never without a word about its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sid_scale.jobs import node_task
from sid_scale.jobs.attempts import NodeEnd, node_ends, signal_of, write_node_end
from tests.launches import PATIENCE

ANSWERS = """
import sys, time
print("started", flush=True)
sys.stdin.readline()
from sid_scale.jobs.stop import stop_requests
with stop_requests(60) as requests:
    while not requests.asked():
        time.sleep(0.01)
    print(requests.reason)
"""
# As the module itself, but that it waits for other nodes for ever.
PATIENT = """
import sys
from sid_scale.jobs import node_task
node_task.WAIT_SECONDS = float("inf")
sys.exit(node_task.main())
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PATIENT, str(folder), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SLURMD_NODENAME": "node2", **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_the_ranks_can_answer_is_not_lost(tmp_path: Path, number: signal.Signals):
    with start(tmp_path, sys.executable, "-u", "-c", ANSWERS) as process:
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, number)  # as a scheduler does: every process
        told, _ = process.communicate("go on\n", timeout=PATIENCE)
    assert process.returncode == 0
    assert told == f"{number.name}\n"
    assert node_ends(tmp_path) == {"node2": NodeEnd(0, False)}


def test_what_cannot_be_started_is_told(tmp_path: Path):
    with start(tmp_path, "no-such-program") as process:
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 127
    assert "error: no-such-program cannot be started" in told


def test_a_killed_process_has_its_word_spoken(tmp_path: Path):
    with start(tmp_path, sys.executable, "-c", KILLED) as process:
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 137
    [(node, end)] = node_ends(tmp_path).items()
    assert (node, end.signal) == ("node2", signal.SIGKILL)


def test_a_node_that_fails_lets_the_other_speak_first(tmp_path: Path):
    with start(tmp_path, "false", SLURM_NNODES="2") as process:
        while "node2" not in node_ends(tmp_path):
            assert process.poll() is None
        assert process.poll() is None
        write_node_end(tmp_path, "node1", NodeEnd(247, False))
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 1


def test_the_kernel_tells_of_kills_for_memory(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(node_task, "VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(sys, "argv", ["node_task", str(tmp_path), "sh", "-c", "exit 137"])
    monkeypatch.setenv("SLURMD_NODENAME", "node1")

    def call(command: list[str]) -> int:
        (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
        return 137

    (tmp_path / "vmstat").write_text("nr_free_pages 9\noom_kill 2\n")
    monkeypatch.setattr(subprocess, "call", call)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert node_task.main() == 137
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert node_ends(tmp_path) == {"node1": NodeEnd(137, killed_for_memory=True)}


@pytest.mark.parametrize(
    ("status", "number"), [(0, None), (1, None), (137, 9), (247, 9), (245, 11), (255, None)]
)
def test_statuses_tell_of_signals(status: int, number: int | None):
    assert signal_of(status) == number
