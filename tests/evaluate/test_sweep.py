"""`sid-scale phema RUN --sweep A:B OUT`: averages of several widths, measured."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sid_scale.cli import main
from sid_scale.commands.phema import add_arguments, parse_sweep
from sid_scale.errors import UsageError
from sid_scale.evaluate.sweep import sweep_widths
from sid_scale.networks.folder import load_network
from sid_scale.zero.snapshots import EMA_SNAPSHOTS
from tests.conftest import flip_last_bit
from tests.distill.snapshots import write_run
from tests.evaluate.evaluations import evaluate, read
from tests.programs import python
from tests.ranks import joined, run_ranks
from tests.tiny import write_data

pytestmark = pytest.mark.distributed

WIDTHS = ("0.050", "0.075", "0.100")
SWEEP = ["--sweep", "0.05:0.1", "--points", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's snapshots, and what the sweep of three widths has left: `run`, `out`, said.txt."""
    place = tmp_path_factory.mktemp("sweep")
    write_run(place / "run")
    shutil.copytree(place / "run", place / "on_ranks")
    data, metrics = write_data(place / "data"), "fd_pixels"
    evaluate("reference", "--data", data, "--metrics", metrics, "--out", place / "real.npz")
    words = ["phema", place / "run", *SWEEP, place / "out", *measured(place)]
    done = python("-m", "sid_scale", *words)
    assert done.returncode == 0, done.stderr
    (place / "said.txt").write_text(done.stdout)
    return place


def measured(place: Path) -> list[object]:
    reference = ["--reference", place / "real.npz"]
    return ["--metrics", "fd_pixels", *reference, "--num", 24]


def sweeps(run: Path) -> Path:
    return run / "evaluation" / "phema" / "000000000016"


def test_the_best_by_the_first_metric_is_written(place: Path):
    told = json.loads((sweeps(place / "run") / "sweep.json").read_text())
    assert tuple(told["widths"]) == WIDTHS
    distances = {float(name): figures["fd_pixels"] for name, figures in told["widths"].items()}
    assert len(set(distances.values())) == 3
    best = min(distances, key=lambda width: distances[width])
    assert (told["best_by"], told["best"], told["num"]) == ("fd_pixels", best, 24)
    provenance = load_network(place / "out").provenance
    assert provenance["post_hoc_ema"]["relative_width"] == best
    assert (
        f"fd_pixels is best at width {best:g}: {place / 'out'}" in (place / "said.txt").read_text()
    )


def test_the_card_of_the_best_has_the_figures_of_its_width_alone(place: Path):
    told = json.loads((sweeps(place / "run") / "sweep.json").read_text())
    [result] = ModelCard.load(place / "out" / "README.md").data.eval_results
    assert result.metric_value == min(f["fd_pixels"] for f in told["widths"].values())
    assert (result.metric_args["images"], result.metric_args["reference"]) == (24, "real.npz")


def test_each_width_is_measured_as_a_folder_of_it_would_be(place: Path, tmp_path: Path):
    assert main(["phema", str(place / "run"), "--width", "0.075", str(tmp_path / "g")]) == 0
    evaluate("run", "--generator", tmp_path / "g", *measured(place), "--out", tmp_path / "alone")
    alone, swept = read(tmp_path / "alone"), read(sweeps(place / "run") / "0.075")
    assert alone["fd_pixels"] == swept["fd_pixels"]
    assert alone["network"]["sha256"] == swept["network"]["sha256"]
    assert alone["network"]["relative_width"] == swept["network"]["relative_width"] == 0.075
    left = {p.name for p in sweeps(place / "run").iterdir()}
    assert left == {*WIDTHS, "sweep.json"}  # no weights


def test_the_report_shows_them_over_the_width(place: Path, tmp_path: Path):
    (place / "run" / "metrics.jsonl").touch()
    out = tmp_path / "report.html"
    assert main(["report", str(place / "run"), "--samples", "0", "--out", str(out)]) == 0
    page = out.read_text()
    assert "<h3>Other widths of the average</h3>" in page
    assert "<title>FD in pixels over the relative width of the average</title>" in page
    assert "generator after 16 images, average of width 0.075" in page


def test_ranks_share_the_work(place: Path):
    run_ranks(2, _swept, place)
    one, two = (
        [read(sweeps(place / run) / name)["fd_pixels"] for name in WIDTHS]
        for run in ("run", "on_ranks")
    )
    assert one == two


def _swept(rank: int, place: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [place / "on_ranks", *SWEEP, place / "out_of_ranks", *measured(place)]
    options = parser.parse_args([str(word) for word in words])
    options.metrics, options.widths = options.metrics.split(","), parse_sweep(options.sweep, 3)
    sweep_widths(options, joined())


@pytest.mark.faults
def test_a_reference_that_is_missing_is_told_before_files_are_read(tmp_path: Path):
    run = write_run(tmp_path / "run")
    flip_last_bit(run / EMA_SNAPSHOTS / "000000000008" / "0.050.safetensors")
    words = ["phema", run, *SWEEP, tmp_path / "out", *measured(tmp_path)]
    done = python("-m", "sid_scale", *words)
    assert done.returncode == 1
    assert f"error: reference {tmp_path / 'real.npz'}: cannot be read" in done.stderr


def test_widths_lie_at_equal_distances():
    assert parse_sweep("0.03:0.15", 7) == [0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15]
    assert parse_sweep(".05:0.1", 2) == [0.05, 0.1]


@pytest.mark.faults
@pytest.mark.parametrize("text", ["0.15:0.03", "0:0.1", "0.1", "0.1:0.3", "a:b", "0.05:0.05", ""])
def test_a_range_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match=rf"--sweep {re.escape(text)}: give two rising widths"):
        parse_sweep(text, 7)


@pytest.mark.faults
def test_points_without_a_distance_are_refused():
    with pytest.raises(UsageError, match=r"less than 0\.001 apart"):
        parse_sweep("0.05:0.052", 7)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "0.1:0.05"], "give two rising widths"),
        (["--sweep", "0.05:0.1", "--points", "1"], "--points 1 is below 2"),
        (["--sweep", "0.05:0.1", "--metrics", "fdi"], "fdi"),
        (["--width", "0.07", "--points", "3"], "--points goes with --sweep"),
    ],
)
def test_what_cannot_be_swept_is_one_line(tmp_path: Path, capsys, words, message):
    assert main(["phema", str(tmp_path / "run"), *words, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
