"""`sid-scale shards` and `sid-scale check`, started as users start them, and killed."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sid_scale.cli import main
from sid_scale.data.shards import read_index
from tests.conftest import ROOT, flip_last_bit
from tests.launches import PATIENCE, Start, contents, wait_for
from tests.sources import digits, latents, write_folder, write_zip

STUCK = "00001/img-latents-00000017.npy"


def make(source: Path, out: Path, *more: str) -> int:
    arguments = ["--source", str(source), "--out", str(out), "--shard-size", "20kB", *more]
    return main(["shards", *arguments])


def test_edm2s_archive_becomes_shards_that_are_found_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_zip(tmp_path / "img512-sd.zip", latents())
    codec = tmp_path / "codec.json"
    codec.write_text(
        '{"kind": "vae", "vae": "v", "scale": [0.4, 0.4, 0.4, 0.4], "bias": [0,0,0,0]}'
    )
    assert make(source, tmp_path / "out", "--workers", "1", "--codec", str(codec)) == 0
    assert "40 samples of 5 classes in 14 shards" in capsys.readouterr().out
    # Unit normal means and deviations: draws of variance 2 and more.
    assert main(["check", str(tmp_path / "out"), "--workers", "1"]) == 1
    told = capsys.readouterr().out
    assert "samples          40 of 40" in told
    assert "FAULT  channel 0" in told


def test_pixels_are_good_until_a_bit_flips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "set", digits())
    assert make(source, tmp_path / "out", "--workers", "1", "--resolution", "16") == 0
    assert main(["check", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.endswith("\ngood\n")
    flip_last_bit(tmp_path / "out" / "shard-000000.tar")
    assert main(["check", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "FAULT  " in capsys.readouterr().out


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The tool's workers: the children of the server that it forks them from."""
    return [
        grandchild
        for child in psutil.Process(process.pid).children()
        for grandchild in child.children()
    ]


def kill_tool(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.kill()
    return -signal.SIGKILL, ""


def kill_worker(process: subprocess.Popen[str]) -> tuple[int, str]:
    workers_of(process)[0].kill()
    return 1, "error: a worker process was killed"


def press_ctrl_c(process: subprocess.Popen[str]) -> tuple[int, str]:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground
    return 130, "stopped; the same command goes on from here"


@pytest.mark.faults
@pytest.mark.parametrize("interrupt", [kill_tool, kill_worker, press_ctrl_c])
def test_interrupted_it_leaves_nobody_behind_and_goes_on(
    tmp_path: Path, start: Start, interrupt: Callable[[subprocess.Popen[str]], tuple[int, str]]
) -> None:
    files = latents()
    whole = write_folder(tmp_path / "whole", files)
    assert make(whole, tmp_path / "straight", "--workers", "1") == 0

    # A worker waits for ever for what comes through this pipe: the work stops in the middle.
    source = write_folder(tmp_path / "source", {k: v for k, v in files.items() if k != STUCK})
    os.mkfifo(source / STUCK)
    out = tmp_path / "out"
    arguments = ("--source", source, "--out", out, "--shard-size", "20kB", "--workers", "2")
    process = start(ROOT / "tools" / "make_shards.py", *arguments)
    others = len(read_index(tmp_path / "straight").shards) - 1
    wait_for(lambda: len(list(out.glob("shard-*.tar"))) == others, process)
    workers = workers_of(process)
    assert len(workers) == 2
    status, message = interrupt(process)
    output = process.communicate(timeout=PATIENCE)[0]
    assert (process.returncode, message in output) == (status, True), output
    assert "Traceback" not in output
    assert psutil.wait_procs(workers, timeout=PATIENCE)[1] == []
    assert not (out / "index.json").exists()

    (source / STUCK).unlink()
    write_folder(source, {STUCK: files[STUCK]})
    before = {path.name: path.stat().st_ino for path in out.glob("shard-*.tar")}
    assert make(source, out, "--workers", "1") == 0
    assert contents(out) == contents(tmp_path / "straight")
    assert before.items() <= {p.name: p.stat().st_ino for p in out.glob("*.tar")}.items()


@pytest.mark.faults
def test_what_cannot_be_used_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "nowhere.zip", tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("nowhere.zip: there is no such folder or archive\n")
    source = write_zip(tmp_path / "set.zip", latents())
    assert make(source, tmp_path / "out", "--codec", str(source)) == 1
    assert "set.zip: describes no codec" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert make(source, tmp_path / "file", "--workers", "1") == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_the_same_command_on_a_finished_set_changes_nothing(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", latents())
    assert make(source, tmp_path / "out", "--workers", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert make(source, tmp_path / "out", "--workers", "1") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert read_index(tmp_path / "out").samples == 40
