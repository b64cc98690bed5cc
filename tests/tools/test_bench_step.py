"""The benchmarks of the iteration run, and their figures add up."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import bench_step
import pytest
import torch
from step_measures import WAITS, synchronisations

from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**ENVIRONMENT, **environment}
    )


@pytest.mark.distributed
def test_both_iterations_are_timed_by_phase_beside_each_other():
    words = ["--size", "tiny", "--batch", "4", "--micro-batch", "2", "--rounds", "1"]
    words += ["--warm-up", "1", "--activations", "checkpoint", "--json"]
    done = run(sys.executable, "tools/bench_step.py", *words)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["activations"] == "checkpoint"
    for name in ("own", "plain"):
        phases = dict(told[name]["milliseconds"])
        whole = phases.pop("all")
        assert sum(phases.values()) == pytest.approx(whole)
        assert {"generate", "fake_score step", "generator backward", "average"} <= phases.keys()
        assert told[name]["images_per_second"] == pytest.approx(4000 / whole)
        assert 0 < told[name]["utilisation"] < 1
        assert told[name]["peak_gigabytes"] > 0
    own, plain = (told[name]["images_per_second"] for name in ("own", "plain"))
    assert told["speed_ratio"]["median"] == pytest.approx(own / plain)


@pytest.mark.distributed
def test_rows_that_fail_do_not_keep_the_others_out_of_the_table(tmp_path: Path):
    rows = ["tiny 2 keep eager own", "tiny 2 keep compile own"]  # refused at stage 3
    done = run("bash", "tools/bench_gpu.sh", str(tmp_path), *rows, STAGE="3", ROUNDS="1")
    assert done.returncode == 0, done.stderr
    title, measured, failed, why = (tmp_path / "table.txt").read_text().splitlines()
    assert title.split()[0] == "size"
    assert measured.split()[:6] == ["tiny", "2", "x", "2", "keep", "eager"]
    assert failed.split() == ["tiny", "2", "keep", "compile"]
    assert "compile_blocks" in why
    assert "aten::" in (tmp_path / "own.txt").read_text()
    assert json.loads((tmp_path / "own.json").read_text())["traceEvents"]


def test_what_the_plain_iteration_lacks_is_one_error():
    words = ["--size", "tiny", "--no-memory", "--rounds", "1", "steps=2"]
    done = run(sys.executable, "tools/bench_step.py", *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: steps is 2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch", "0"], "argument --batch: invalid positive number value: '0'"),
        (["--micro-batch", "0"], "argument --micro-batch: invalid positive number value: '0'"),
        (["--rounds", "0"], "argument --rounds: invalid positive number value: '0'"),
        (["--warm-up", "-1"], "error: --warm-up -1 is below 0"),
        (["--folder", "/proc/bench"], "error: [Errno 2] No such file or directory: '/proc/bench'"),
        (["--profile", "/proc/bench"], "error: [Errno 2] No such file or directory: '/proc/bench'"),
    ],
)
def test_options_that_cannot_be_are_one_error(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--size", "tiny", *words])
    try:
        status = bench_step.main()
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("row", ["tiny", "tiny x keep eager both", "tiny 8 keep eagr both"])
def test_a_row_that_is_none_is_refused_before_the_first_is_measured(tmp_path: Path, row: str):
    words = [str(tmp_path / "bench"), "tiny 2 keep eager own", row]
    done = run("bash", "tools/bench_gpu.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: row "{row}"; usage: ')
    assert not (tmp_path / "bench").exists()


def test_methods_that_it_does_not_measure_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--config", "edm-cifar10-cond-gdd"])
    assert bench_step.main() != 0
    assert capsys.readouterr().err.startswith("error: method gdd: iterations of SiD, SiDA and")


def test_waits_for_the_gpu_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def action() -> None:
        torch.cuda.synchronize()
        for _ in range(2):
            warnings.warn(WAITS, stacklevel=1)

    assert synchronisations(action) == 3
    assert synchronisations(lambda: None) == 0
