"""One run folder is one run."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from sid_scale.jobs.lock import LOCK, STALE_SECONDS, Holder, LockedError, locked, read_lock
from tests.launches import PATIENCE

HOLDS = """
import sys, time
from pathlib import Path
from sid_scale.jobs import lock
lock.TOUCH_SECONDS = 0.05
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "held\n"
        yield p
        p.kill()


def leave(folder: Path, **changes: object) -> Holder:
    """A lock that somebody elsewhere has left."""
    elsewhere = {"host": "elsewhere", "token": "theirs", "job": None, "restarts": 0}
    holder = replace(Holder.ourselves(), **{**elsewhere, **changes})
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def let_pass(folder: Path, seconds: float) -> None:
    then = (folder / LOCK).stat().st_mtime - seconds
    os.utime(folder / LOCK, (then, then))


def test_a_folder_in_use_is_refused_with_who_holds_it(tmp_path: Path, holder: subprocess.Popen):
    with pytest.raises(LockedError) as refused, locked(tmp_path):
        pass
    for told in (str(tmp_path), socket.gethostname(), str(holder.pid), "since", LOCK):
        assert told in str(refused.value)
    assert read_lock(tmp_path).pid == holder.pid


def test_it_is_given_back(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path / "new") as told:
            assert told == []
            assert read_lock(tmp_path / "new").pid == os.getpid()
        assert not (tmp_path / "new").exists()


def test_given_back_by_an_error_too(tmp_path: Path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: subprocess.Popen):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path) as told:
        assert f"(process {holder.pid})" in told[0]
        assert "that process is gone" in told[0]


def test_a_process_id_that_another_process_has_by_now_is_no_sign_of_life(tmp_path: Path):
    leave(tmp_path, host=socket.gethostname(), began=1.0)
    with locked(tmp_path) as told:
        assert "that process is gone" in told[0]


def test_elsewhere_only_silence_tells(tmp_path: Path):
    leave(tmp_path)
    let_pass(tmp_path, STALE_SECONDS - 60)
    with pytest.raises(LockedError, match="on elsewhere"), locked(tmp_path):
        pass
    let_pass(tmp_path, 120)
    with locked(tmp_path) as told:
        assert "no sign of life" in told[0]


def test_a_requeued_job_takes_its_own_lock_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    leave(tmp_path, job="17", restarts=0)
    with locked(tmp_path) as told:
        assert "that was this job before" in told[0]
        assert read_lock(tmp_path).restarts == 1
    leave(tmp_path, job="17", restarts=1)  # two steps of one attempt
    with pytest.raises(LockedError, match="SLURM job 17"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("answer", "stale"),
    [
        ("echo RUNNING", False),
        ("echo COMPLETING", False),
        ("echo PENDING", True),
        ("echo CANCELLED", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", False),
    ],
)
def test_slurm_says_whether_a_job_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, stale: bool
):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    leave(tmp_path, job="17")
    if stale:
        with locked(tmp_path) as told:
            assert "that job has ended" in told[0]
    else:
        with pytest.raises(LockedError, match="SLURM job 17"), locked(tmp_path):
            pass


def test_another_clusters_job_is_not_judged_by_ours(tmp_path: Path, monkeypatch):
    """Clusters that share a file system number their jobs each for itself."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text("#!/bin/sh\necho Invalid job id specified >&2; exit 1\n")
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    leave(tmp_path, job="17", cluster="theirs")
    with pytest.raises(LockedError, match="SLURM job 17"), locked(tmp_path):
        pass
    leave(tmp_path, job="18", cluster="theirs", restarts=-1)
    with pytest.raises(LockedError, match="SLURM job 18"), locked(tmp_path):
        pass
    leave(tmp_path, job="17", cluster="ours")
    with locked(tmp_path) as told:
        assert "that job has ended" in told[0]


HELD = []  # by a process of the pool, until it ends


def _try(folder: Path) -> bool:
    HELD.append(locked(folder))
    try:
        HELD[-1].__enter__()
        return True
    except LockedError:
        return False


@pytest.mark.faults
def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path: Path):
    leave(tmp_path)
    let_pass(tmp_path, STALE_SECONDS + 60)
    with ProcessPoolExecutor(8, mp_context=get_context("fork")) as pool:
        assert sum(pool.map(_try, [tmp_path] * 8)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


@pytest.mark.faults
@pytest.mark.parametrize("lose", [leave, lambda folder: (folder / LOCK).unlink()])
def test_a_holder_that_lost_its_lock_ends(tmp_path: Path, holder: subprocess.Popen, lose):
    lose(tmp_path)
    _, told = holder.communicate(timeout=PATIENCE)
    assert holder.returncode == 1
    assert "this run ends" in told


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockedError, match="cannot be written to"), locked(tmp_path / "file"):
        pass
