"""What becomes of a job whose run has ended."""

from pathlib import Path

import pytest

from sid_scale.jobs.attempts import (
    FAILED,
    FINISHED,
    REFUSED,
    STOPPED,
    Outcome,
    attempt_folder,
    write_outcome,
)
from sid_scale.jobs.requeue import AGAIN, Requeues, decide, main, newest_checkpoint

CRASHED = Outcome(FAILED, "NCCL error", "rank 3 on node2")
NEW = Requeues()


@pytest.mark.parametrize(
    ("outcome", "status", "newest", "before", "expected"),
    [
        (Outcome(FINISHED), 0, 32, NEW, 0),
        (Outcome(FINISHED), 1, 32, NEW, 0),  # what the launcher makes of it matters not
        (Outcome(STOPPED, "SIGUSR1"), 75, 16, NEW, AGAIN),
        (Outcome(STOPPED, "SIGUSR1"), 0, 16, NEW, AGAIN),
        (CRASHED, 1, 16, NEW, AGAIN),
        (None, 137, 16, NEW, AGAIN),  # a kill leaves no word
        (None, 0, 16, NEW, AGAIN),  # nor does DeepSpeed's launcher, of its own
        (None, 2, -1, NEW, 2),  # settings at fault
        (None, 127, -1, NEW, 127),  # no such program
        (Outcome(FAILED, "no such teacher", is_user_error=True), 1, -1, NEW, 1),
        (Outcome(REFUSED, "in use", is_user_error=True), 1, 16, NEW, 1),
        (CRASHED, 1, 16, Requeues(16, 1), AGAIN),
        (CRASHED, 1, 16, Requeues(16, 2), 1),  # the third in a row that brought nothing
        (CRASHED, 1, 24, Requeues(16, 2), AGAIN),
        (Outcome(STOPPED), 0, 16, Requeues(16, 2), 1),
    ],
)
def test_what_becomes_of_it(outcome, status, newest, before, expected):
    decision, _ = decide(outcome, status, newest, before, limit=3)
    assert decision.status == expected


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (1, "(status 1)"),
        (137, "(status 137: a process was ended by SIGKILL)"),
        (247, "(status 247: a process was ended by SIGKILL)"),
        (143, "(status 143: a process was ended by SIGTERM)"),
        (128, "(status 128)"),
        (255, "(status 255)"),
    ],
)
def test_a_kill_is_named(status: int, told: str):
    decision, _ = decide(CRASHED, status, 16, NEW, limit=3)
    assert told in decision.message


def test_progress_starts_the_count_anew():
    before, seen = Requeues(), []
    for newest in (-1, -1, 8, 8, 8, 16):
        decision, before = decide(CRASHED, 1, newest, before, limit=3)
        seen.append((decision.status, before.in_vain))
    assert seen == [(75, 1), (75, 2), (75, 0), (75, 1), (75, 2), (75, 0)]


def test_the_count_outlives_the_job(tmp_path: Path, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    text = "method: sid\nteacher: t\ndeepspeed: d\ntotal_images: 8192"
    config.write_text(f"run_dir: {tmp_path / 'run'}\n{text}\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    arguments = ["--config", str(config), "--status", "137", "--limit", "2"]
    statuses = []
    for restarts in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        statuses.append(main(arguments))
    assert statuses == [AGAIN, 137]
    told = capsys.readouterr().out
    assert (
        "no outcome recorded (killed?) (status 137: a process was ended by SIGKILL); queued again"
        in told
    )
    assert "2 starts in a row have come no further than 0 images" in told

    attempt = attempt_folder(tmp_path / "run", "17-2")
    attempt.mkdir(parents=True)
    write_outcome(attempt, Outcome(FINISHED, images_seen=8192))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert main(arguments) == 0
    assert "finished at 8,192 images" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"images_seen": null}', '{"in_vain": "1"}'])
def test_a_damaged_count_begins_anew(tmp_path: Path, monkeypatch, capsys, text: str):
    config = tmp_path / "run.yaml"
    run_dir = tmp_path / "run"
    config.write_text(
        f"run_dir: {run_dir}\nmethod: sid\nteacher: t\ndeepspeed: d\ntotal_images: 8192\n"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    run_dir.mkdir()
    (run_dir / "requeues.json").write_text(text)
    assert main(["--config", str(config), "--status", "137"]) == AGAIN
    assert "queued again" in capsys.readouterr().out


def test_only_complete_checkpoints_are_progress(tmp_path: Path):
    assert newest_checkpoint(tmp_path) == -1
    for name in ("000000000008", "000000000016.damaged", ".000000000024.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "000000000032").mkdir()
    (tmp_path / "checkpoints" / "latest").symlink_to("000000000008")
    assert newest_checkpoint(tmp_path) == 8


def test_settings_at_fault_are_told_once(tmp_path: Path, capsys):
    (tmp_path / "run.yaml").write_text("metod: sid\n")
    assert main(["--config", str(tmp_path / "run.yaml"), "--status", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_a_limit_that_is_no_number_is_told(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("SID_SCALE_REQUEUES", "many")
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(tmp_path / "run.yaml"), "--status", "1"])
    assert ended.value.code == 2
    assert "invalid int value: 'many'" in capsys.readouterr().err
