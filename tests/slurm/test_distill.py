"""`sbatch slurm/distill.sbatch` on two nodes, and all that a scheduler does to a run."""

import json
from pathlib import Path

import pytest
import torch

from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.jobs.attempts import read_outcome
from sid_scale.networks.folder import load_network
from tests.conftest import ROOT
from tests.ranks import run_ranks
from tests.slurm.cluster import Cluster
from tests.slurm.runs import (
    SCRIPT,
    distil,
    in_process,
    let_it_end,
    losses,
    programs,
    seen,
    tiny_run,
    write_run,
)
from tests.tiny import write_deepspeed_json

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]


def test_digits_at_zero_3_on_two_nodes_have_the_losses_of_two_ranks(
    cluster: Cluster, tmp_path: Path
):
    """At ZeRO 2: test_pipeline.py."""
    write_digit_shards(tmp_path / "shards", TEACHER)
    folder, alone = tmp_path / "run", tmp_path / "alone"
    run = write_run(
        tmp_path / "run.yaml",
        extends=ROOT / "sid_scale" / "presets" / "digits.yaml",
        run_dir=folder,
        teacher=TEACHER,
        data=tmp_path / "shards",
        deepspeed=write_deepspeed_json(tmp_path, 3),
        total_images=192,
        log={"every_images": 64, "samples_every_images": 0},
    )
    job = distil(cluster, run)
    run_ranks(2, in_process, run, alone)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["NumNodes"] == "2"
    assert losses(folder) == losses(alone)
    assert len(losses(folder)) == 3
    told = json.loads((folder / "environment.json").read_text())
    assert (told["ranks"], told["zero_stage"]) == (2, 3)
    logs = folder / "logs" / f"{job}-0"
    assert {p.name for p in logs.iterdir()} == {
        *("outcome.json", "nodes.json", "node-node1.json", "node-node2.json"),
        *("rank-0.log", "rank-1.log"),
    }
    assert read_outcome(logs).kind == "finished"


def test_a_run_outlives_all_that_a_scheduler_does_to_it(cluster: Cluster, tmp_path: Path):
    run, values = tiny_run(tmp_path)
    folder = Path(values["run_dir"])
    job = distil(cluster, run, "--time=1", "--signal=USR1@15")

    def goes_on() -> bool:
        before = seen(folder)
        cluster.wait(lambda: seen(folder) > before, "progress", job)
        return True

    def outcome(attempt: int) -> str:
        told = cluster.wait(
            lambda: read_outcome(folder / "logs" / f"{job}-{attempt}"), f"end {attempt}", job
        )
        restarts = attempt + 1
        cluster.wait(lambda: cluster.restarts(job) == restarts, f"restart {restarts}", job)
        cluster.hurry(job)
        return f"{told.kind} {told.reason}"

    assert outcome(0) == "stopped SIGUSR1"  # by itself, for its minute is over
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    goes_on()
    # Another job on the same folder is refused, and not queued again.
    second = distil(cluster, run, "--nodes=1")
    assert cluster.finish(second) == "FAILED"
    assert f"is in use by SLURM job {job} on " in cluster.log(second)
    assert "Traceback" not in cluster.log(second)

    cluster.run("scancel", "--signal=TERM", str(job))  # as preemption does
    assert outcome(1) == "stopped SIGTERM"

    goes_on()
    cluster.run("scontrol", "requeue", str(job))
    assert outcome(2) == "stopped SIGTERM"

    goes_on()
    cluster.ranks(job)[1].kill()
    assert outcome(3).startswith("failed")
    total = let_it_end(run, values)

    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    log = cluster.log(job)
    assert "restart 1" in log
    assert "the attempt before: stopped at" in log
    assert "queued again, to go on from" in log
    assert cluster.processes(job) == []

    run_ranks(2, in_process, run, tmp_path / "alone")
    assert seen(folder) == total
    assert losses(folder) == losses(tmp_path / "alone")
    ours, theirs = (load_network(f / "generator").state for f in (folder, tmp_path / "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_loses_a_node_goes_on_without_it(cluster: Cluster, tmp_path: Path):
    """Its first node, on which the job's own script runs, dies and comes back."""
    run, values = tiny_run(tmp_path)
    folder = Path(values["run_dir"])
    job = distil(cluster, run)
    cluster.wait(lambda: seen(folder) > 16, "progress", job)
    assert len(cluster.ranks(job)) == 2
    cluster.crash_node("node1")
    try:
        cluster.wait(lambda: cluster.restarts(job) == 1, "restart", job)
    finally:
        cluster.start_node("node1", "-b")
    cluster.wait(lambda: set(cluster.node_states().values()) == {"IDLE"}, "idle nodes")
    let_it_end(run, values)
    cluster.hurry(job)
    cluster.wait(lambda: cluster.job(job)["ExcNodeList"] == "node1", "new list", job)
    assert "node1 is sick (SLURM lost it): queued again without it" in cluster.log(job)
    cluster.run("scontrol", "update", f"JobId={job}", "NumNodes=1", "NumTasks=1", "NumCPUs=1")
    cluster.hurry(job)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["NodeList"] == "node2"
    assert "written by 2 ranks at ZeRO 2" in cluster.log(job)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 1
    cluster.wait(lambda: not cluster.processes(job), "end of all processes", job)


def test_a_crash_loop_is_broken(cluster: Cluster, tmp_path: Path):
    run, _ = tiny_run(tmp_path)
    venv = programs(tmp_path / "venv", deepspeed="kill -9 $$")
    environment = {"SID_SCALE_VENV": str(venv), "SID_SCALE_REQUEUES": "2"}
    job = distil(cluster, run, **environment)
    cluster.wait(lambda: cluster.restarts(job) == 1, "restart", job)
    cluster.hurry(job)
    assert cluster.finish(job) == "FAILED"
    assert cluster.restarts(job) == 1
    assert "2 starts in a row have come no further than 0 images" in cluster.log(job)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("deepspeed=ds.json", 'bf16.enabled is "auto"'),
        ("deepsped=zero2", "unknown key deepsped"),
        ("deepspeed=zero22", "zero22 is neither a file nor a name"),
    ],
)
def test_settings_at_fault_are_one_error_before_any_rank_starts(
    cluster: Cluster, tmp_path: Path, setting: str, message: str
):
    (tmp_path / "ds.json").write_text('{"bf16": {"enabled": "auto"}}')
    place = [f"--output={tmp_path}/%j.out", f"--chdir={tmp_path}", "--gpus-per-node=1"]
    job = cluster.submit(*place, SCRIPT, "digits", f"run_dir={tmp_path}/run", setting)
    assert cluster.finish(job) == "FAILED"
    assert cluster.restarts(job) == 0
    [error] = [line for line in cluster.log(job).splitlines() if line.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()
