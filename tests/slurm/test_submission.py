"""However a script is submitted: without the environment, from elsewhere, for some tasks only."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.runs import programs

pytestmark = pytest.mark.slurm

REPORT = ROOT / "slurm" / "report.sbatch"
TELL = 'case "$*" in *sid_scale*) echo "$* in $PYTHONPATH, NCCL_DEBUG=$NCCL_DEBUG"; exit ;; esac'


@pytest.fixture
def venv(tmp_path: Path) -> str:
    """Programs that tell what they would do."""
    return str(programs(tmp_path / "venv", before_python=TELL))


def log(cluster: Cluster, script: Path, venv: str, ends: str, **environment: str) -> str:
    """What a job of this script tells, which ends so."""
    place = [f"--output={venv}/%j.out", f"--chdir={venv}", str(script), "a run", "--out=x"]
    job = cluster.submit(*place, SID_SCALE_VENV=venv, **environment)
    assert cluster.finish(job) == ends
    return (Path(venv) / f"{job}.out").read_text()


def test_steps_have_the_environment_where_export_none_is_a_rule(
    cluster: Cluster, tmp_path: Path, venv: str
):
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "sid_scale.env").write_text(f"SID_SCALE_VENV={venv}\n")
    options = ["--export=HOME,SID_SCALE_PARTS=8", "--array=3,7", f"--output={tmp_path}/%a.out"]
    script = str(ROOT / "slurm" / "encode_latents.sbatch")
    job = cluster.submit(*options, f"--chdir={tmp_path}", script, "--out=x", HOME=str(tmp_path))
    assert cluster.finish(job) == "COMPLETED"
    for part in (3, 7):
        told = (tmp_path / f"{part}.out").read_text()
        assert f"encode --part {part}/8 --out=x in {ROOT}, NCCL_DEBUG=WARN" in told


def test_a_linked_script_finds_the_repository(cluster: Cluster, tmp_path: Path, venv: str):
    link = tmp_path / "of mine.sbatch"
    link.symlink_to(REPORT)
    assert f"report a run --out=x in {ROOT}" in log(cluster, link, venv, "COMPLETED")


def test_a_copied_script_is_told_where_the_repository_is(
    cluster: Cluster, tmp_path: Path, venv: str
):
    copy = tmp_path / "slurm" / REPORT.name
    copy.parent.mkdir()
    shutil.copy(REPORT, copy)
    told = log(cluster, copy, venv, "FAILED")
    assert [line for line in told.splitlines() if "error: " in line] == told.splitlines()
    assert f"error: {tmp_path} is not sid_scale's repository" in told
    assert "SID_SCALE_HOME=FOLDER sbatch" in told
    told = log(cluster, copy, venv, "COMPLETED", SID_SCALE_HOME=str(ROOT))
    assert f"report a run --out=x in {ROOT}" in told


def test_a_python_without_the_packages_is_one_error_and_one_start(cluster: Cluster, venv: str):
    (Path(venv) / "bin" / "python").write_text("#!/bin/sh\nexec /usr/bin/env -i false\n")
    place = [f"--output={venv}/%j.out", str(ROOT / "slurm" / "distill.sbatch"), "digits"]
    job = cluster.submit("--gpus-per-node=1", *place, SID_SCALE_VENV=venv)
    assert cluster.finish(job) == "FAILED"
    assert cluster.restarts(job) == 0
    assert "error: no python with torch, deepspeed and psutil" in cluster.log(job)
