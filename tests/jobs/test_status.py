"""How runs stand, from whatever their folders hold."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.jobs.attempts import FAILED, FINISHED, REFUSED, STOPPED, Outcome, write_outcome
from sid_scale.jobs.lock import LOCK, Holder, locked
from sid_scale.jobs.status import status_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run at 64 of 256 images, with a checkpoint at 32."""
    folder = tmp_path / "run"
    folder.mkdir()
    text = "method: sid\nteacher: t\ndeepspeed: d\ntotal_images: 256\nbatch_size: 32\n"
    (folder / "config.yaml").write_text(f"run_dir: {folder}\n{text}")
    records = [
        {"images_seen": 32, "images_per_second": 4.0, "evaluation/fd_pixels": 0.25},
        {"images_seen": 64, "images_per_second": 2.0, "loss/generator_sid": 3.5},
    ]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"images_se']))  # half a line
    (folder / "checkpoints" / "000000000032").mkdir(parents=True)
    (folder / "checkpoints" / "000000000032" / "manifest.json").write_text("{}")
    return folder


def live(run: Path, name: str, outcome: Outcome | None = None, age: float = 0) -> None:
    attempt = run / "logs" / name
    attempt.mkdir(parents=True)
    if outcome is not None:
        write_outcome(attempt, outcome)
    then = time.time() - age
    os.utime(attempt, (then, then))


def test_a_running_run_tells_all(run: Path, capsys: pytest.CaptureFixture):
    with locked(run):
        status = status_of(run)
        assert main(["status", str(run)]) == 0
    assert status.state == "running"
    assert (status.images_seen, status.total_images, status.checkpoint) == (64, 256, 32)
    assert status.images_per_second in (2.0, 4.0)
    assert status.seconds_left == pytest.approx(192 / status.images_per_second)
    assert status.metric == "fd_pixels 0.25 at 32"
    told = capsys.readouterr().out
    for line in ("running: a run on", "64 of 256", "images a second", "at 32", "expected end"):
        assert line in told


@pytest.mark.parametrize(
    ("outcome", "state", "status"),
    [
        (Outcome(FINISHED), "finished", 0),
        (Outcome(STOPPED, "SIGTERM"), "stopped", 0),
        (Outcome(FAILED, "the disk is full"), "failed", 1),
        (None, "left", 1),
    ],
)
def test_an_ended_run_says_how(run: Path, capsys, outcome, state: str, status: int):
    live(run, "20260101-000000", outcome)
    assert main(["status", str(run)]) == status
    assert f"state         {state}" in capsys.readouterr().out
    assert status_of(run).seconds_left is None


def test_a_lock_that_nobody_holds_any_more_is_no_run(run: Path):
    live(run, "20260101-000000")
    gone = {**asdict(Holder.ourselves()), "began": 1.0}
    (run / LOCK).write_text(json.dumps(gone))
    status = status_of(run)
    assert status.state == "left"
    assert "that process is gone" in status.why


def test_the_last_life_counts_unless_it_was_refused(run: Path):
    live(run, "16-0", Outcome(FAILED, "earlier"), age=300)
    live(run, "17-0", Outcome(STOPPED, "SIGUSR1"), age=200)
    live(run, "18-0", Outcome(REFUSED, "in use"), age=100)
    assert status_of(run).state == "stopped"


def test_a_queued_run_waits(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho PENDING\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    live(run, "17-3", Outcome(STOPPED, "SIGUSR1", images_seen=32))
    status = status_of(run)
    assert status.state == "queued"
    assert status.why == "SLURM job 17 goes on; before: stopped at 32 images: SIGUSR1"


def test_several_runs_take_a_line_each(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    live(run, "20260101-000000", Outcome(FINISHED))
    assert main(["status", str(run), str(tmp_path / "nowhere")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{run}: finished, 64 of 256, ")
    assert lines[1] == f"{tmp_path / 'nowhere'}: no run has begun there"


def test_a_folder_without_a_run_is_told_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path}: no run has begun there\n"
