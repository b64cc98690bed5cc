"""Nodes that fail are left out of what comes; a slow one is named."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import psutil
import pytest

from sid_scale.jobs.attempts import read_outcome
from tests.slurm.cluster import Cluster
from tests.slurm.runs import distil, let_it_end, programs, seen, tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]

# What runs ranks on node2 in place of Python: its products of matrices are wrong.
FAULTY = """
import runpy, sys
import torch

def product(a, b, right=torch.Tensor.__matmul__):
    result = right(a, b)
    if result.ndim == 2:
        result[-1, -1] += 1
    return result

torch.Tensor.__matmul__ = product
del sys.argv[:3]  # -u -m sid_scale.train
runpy.run_module("sid_scale.train", run_name="__main__", alter_sys=True)
"""
# So that noise is none, of a busy machine either; a slowed rank is twenty times as slow.
PATIENT = {"check_devices": True, "straggler_factor": 4, "straggler_intervals": 6}


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """Inside, a process runs for a twentieth of the time."""
    ended = threading.Event()

    def slow() -> None:
        while not ended.wait(0.01):
            process.suspend()
            ended.wait(0.19)
            process.resume()

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_slow_node_is_named_and_a_killed_rank_s_left_out(cluster: Cluster, tmp_path: Path):
    run, values = tiny_run(tmp_path, health=PATIENT)
    folder = Path(values["run_dir"])
    job = distil(cluster, run)
    cluster.wait(lambda: seen(folder) > 32, "progress", job)
    assert "straggler" not in cluster.log(job)
    with slowed(cluster.ranks(job)[1]):
        cluster.wait(lambda: "straggler" in cluster.log(job), "straggler", job)
    [told] = [line for line in cluster.log(job).splitlines() if line.startswith("straggler")]
    assert "all ranks wait for rank 1 on node2 (" in told
    assert "slowest rank 1 on node2: " in cluster.log(job)

    cluster.ranks(job)[1].kill()
    cluster.wait(lambda: cluster.restarts(job) == 1, "restart", job)
    assert "node2 is sick: SIGKILL ended a rank" in cluster.log(job)
    cluster.wait(lambda: cluster.job(job)["ExcNodeList"] == "node2", "new list", job)
    let_it_end(run, values, 16)
    cluster.hurry(job)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["NodeList"] == "node[1,3]"
    assert "rank 1 of 2 on node3" in (folder / "logs" / f"{job}-1" / "rank-1.log").read_text()


@pytest.mark.faults
def test_a_node_that_fails_the_check_is_left_out(cluster: Cluster, tmp_path: Path):
    run, values = tiny_run(tmp_path, total_images=16)
    (tmp_path / "faulty.py").write_text(FAULTY)
    faulty = f"""
case "$SLURMD_NODENAME $*" in
    node2*sid_scale.train*) exec {sys.executable} -u {tmp_path}/faulty.py "$@" ;;
esac"""
    venv = programs(
        tmp_path / "venv", deepspeed=f'exec {which("deepspeed")} "$@"', before_python=faulty
    )
    job = distil(cluster, run, "--nodes=1", "--exclude=node1", SID_SCALE_VENV=str(venv))
    attempts = Path(values["run_dir"]) / "logs"
    cluster.wait(lambda: cluster.restarts(job) == 1, "restart", job)
    outcome = read_outcome(attempts / f"{job}-0")
    assert outcome.sick_nodes == ("node2",)
    assert not outcome.is_user_error
    assert "error: rank 0 on node2, cpu, is at fault: 1 of 1 products" in cluster.log(job)
    assert "Traceback" not in cluster.log(job)
    cluster.wait(lambda: cluster.job(job)["ExcNodeList"] == "node1,node2", "new list", job)
    cluster.hurry(job)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["NodeList"] == "node3"
