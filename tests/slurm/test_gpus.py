"""How many ranks a job has, in whichever way its GPUs were asked for, and which GPUs they see."""

import re
from pathlib import Path

import pytest

from tests.slurm.cluster import GPUS, Cluster
from tests.slurm.runs import SCRIPT, programs

pytestmark = pytest.mark.slurm

# Stands for DeepSpeed's launcher: tells the hostfile, and starts a rank as the launcher does.
DEEPSPEED = """\
for word; do case $word in --hostfile=*) cat "${word#*=}" ;; esac; done
while [ "$1" != --no_python ]; do shift; done
shift
CUDA_VISIBLE_DEVICES=0,1 exec "$@"
"""
ONCE = {"SID_SCALE_REQUEUES": "0"}  # whichever node's rank ends first
TELL = 'case "$*" in *sid_scale.train*) echo "sees $CUDA_VISIBLE_DEVICES."; exit 2 ;; esac'


def failed(cluster: Cluster, folder: Path, *options: str, **environment: str) -> str:
    """The batch log of a job with these options, which fails at its first start."""
    venv = programs(folder / "venv", DEEPSPEED, TELL)
    place = [f"--output={folder}/%j.out", f"--chdir={folder}", *options]
    run = [SCRIPT, "digits", f"run_dir={folder}/run"]
    job = cluster.submit(*place, *run, SID_SCALE_VENV=str(venv), **environment)
    assert cluster.finish(job) == "FAILED"
    assert cluster.restarts(job) == 0
    return cluster.log(job)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ("", GPUS),  # all that the nodes have
        ("--gres=gpu:2", 2),
        ("--gres=gpu:2 --oversubscribe", 2),
        ("--gres=gpu:a100:3", 3),
        ("--gpus-per-node=a100", 1),
        ("--gpus-per-node=a100:2", 2),
        ("--gpus=8", 4),
        ("--gpus-per-task=2", 2),
        ("--gpus-per-task=a100:1 --ntasks-per-node=3", 3),
        ("--gres=gpu:1 --nodes=1", 1),
    ],
)
def test_a_node_has_a_rank_for_each_gpu_that_the_job_has(
    cluster: Cluster, tmp_path: Path, options: str, ranks: int
):
    log = failed(cluster, tmp_path, *options.split(), **ONCE)
    assert set(re.findall(r"^node\d slots=.*", log, re.M)) <= {
        f"node1 slots={ranks}",
        f"node2 slots={ranks}",
    }
    assert f" nodes x {ranks} ranks" in log


@pytest.mark.faults
@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ("--gpus-per-node=0", "", "this job has no GPUs"),
        ("--oversubscribe", "", "this job has no GPUs"),
        ("--gpus=6", "", "unlike numbers of GPUs (node1: 4, node2: 2)"),
        ("--gpus-per-node=4 --gres=gpu:2 --oversubscribe", "", "in ways that do not agree"),
        ("--gpus-per-node=2", "MIG-a,MIG-b", "several MIG instances"),
    ],
)
def test_gpus_that_ranks_cannot_use_are_one_error_and_one_start(
    cluster: Cluster, tmp_path: Path, options: str, devices: str, message: str
):
    log = failed(cluster, tmp_path, *options.split(), TEST_DEVICES=devices)
    [line] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "slots" not in log


@pytest.mark.parametrize("devices", ["4,5", "GPU-8f2c,GPU-90ab", "MIG-9f3e"])
def test_ranks_see_the_gpus_that_slurm_names(cluster: Cluster, tmp_path: Path, devices: str):
    """Not those that DeepSpeed counts from 0: they may be another job's."""
    count = devices.count(",") + 1
    log = failed(
        cluster, tmp_path, "--nodes=1", f"--gres=gpu:{count}", TEST_DEVICES=devices, **ONCE
    )
    assert f" nodes x {count} ranks" in log
    assert f"sees {devices}." in log
