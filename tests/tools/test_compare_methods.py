"""`tools/compare_methods.py`: every row is measured alike, and the page says what was measured."""

import json
import time
from pathlib import Path
from typing import Any

import compare_workers
import pytest
from compare_job import Job, config_of, described
from compare_methods import (
    chosen_rows,
    main,
    parse_options,
    reported_jobs,
    results_of,
)
from compare_rows import ROWS, row_named
from compare_table import (
    BEGIN,
    END,
    choices,
    equal_seconds,
    interpolated,
    measured,
    replace_between,
    section,
    table,
    whole_road,
)
from compare_workers import Workers, run_all

from sid_scale.errors import UsageError
from tests.conftest import ROOT
from tests.launches import Start

FIGURES = {"distance": 0.0, "accuracy": 0.9, "precision": 0.8, "recall": 0.7}


def point(images: float, seconds: float, distance: float) -> dict[str, float]:
    return {**FIGURES, "images": images, "seconds": seconds, "distance": distance}


def run_of(row: str, seed: int, *points: dict[str, float], peak: float = 100.0) -> dict[str, Any]:
    return {"row": row, "seed": seed, "points": list(points), "peak_megabytes": peak, "rate": 1.0}


# --- at equal time ------------------------------------------------------------------------


def test_a_value_between_two_snapshots_is_on_the_line_between_them():
    points = [point(100, 10, 0.8), point(200, 20, 0.4), point(300, 40, 0.2)]
    at_fifteen = interpolated(points, "seconds", 15)
    assert (at_fifteen["images"], at_fifteen["distance"]) == (150, pytest.approx(0.6))
    assert interpolated(points, "seconds", 30)["distance"] == pytest.approx(0.3)
    assert interpolated(points, "images", 200)["distance"] == pytest.approx(0.4)


def test_beyond_the_last_snapshot_it_is_the_last_and_before_the_first_there_is_none():
    points = [point(100, 10, 0.8), point(200, 20, 0.4)]
    assert interpolated(points, "seconds", 21) == points[-1]
    with pytest.raises(ValueError, match="seconds 9 comes before the first point, 10"):
        interpolated(points, "seconds", 9)


def test_a_run_that_goes_on_from_another_counts_the_images_and_seconds_of_both():
    before = [point(100, 10, 0.8), point(200, 20, 0.4)]
    road = whole_road([point(100, 15, 0.3)], before, half=100)
    assert [(p["images"], p["seconds"], p["distance"]) for p in road] == [
        (100, 10, 0.8),
        (200, 25, 0.3),
    ]


def test_rows_are_compared_when_the_fastest_one_is_done():
    runs = [
        run_of("SiD", 1, point(100, 4, 0.8), point(200, 8, 0.4)),
        run_of("SiD", 2, point(100, 6, 0.6), point(200, 12, 0.2)),
        run_of("SiDA", 1, point(100, 10, 0.5), point(200, 20, 0.1)),
    ]
    rows = measured(runs, images=200)
    assert equal_seconds(rows) == 10
    assert rows[1].at_time("distance", 10) == [0.5]


def test_a_seed_whose_first_half_is_missing_is_left_out():
    runs = [
        run_of("SiD", 1, point(100, 10, 0.8), point(200, 20, 0.4), peak=300),
        run_of("SiD2A", 1, point(100, 15, 0.3), peak=200),
        run_of("SiD2A", 2, point(100, 15, 0.2)),
    ]
    (row,) = (row for row in measured(runs, images=200) if row.row.name == "SiD2A")
    assert row.at_the_end("distance") == [0.3]
    assert row.peak_megabytes == [300]


# --- the page -----------------------------------------------------------------------------


def test_the_table_has_mean_and_deviation_over_seeds():
    runs = [run_of("SiD", seed, point(2000, 10, 0.4 + 0.1 * seed)) for seed in (1, 2, 3)]
    teacher = {"teacher, 35 evaluations": {**FIGURES, "distance": 0.1}}
    head, _, reference, line = table(measured(runs, images=2000), teacher).splitlines()
    assert head.startswith("| method | distance, equal images | distance, equal time |")
    assert reference.startswith("| *teacher, 35 evaluations* | 0.100 | - | - | 0.900 |")
    assert line.startswith("| SiD | 0.600 ± 0.100 | 0.600 ± 0.100 | 2,000 | 0.900 | 0.800 |")
    assert line.endswith("| 0.700 | 5.00 | 100 |")


def test_latents_and_pixels_have_a_table_each():
    runs = [run_of(name, 1, point(2000, 10, 0.5)) for name in ("GDD", "GDD, pixels")]
    text = section({"images": 2000, "runs": runs}, "methods.png")
    latents, pixels = text.split("### ")[1:]
    assert latents.startswith("Latents")
    assert latents.count("| GDD |") == 1
    assert pixels.startswith("Pixels")
    assert pixels.count("| GDD |") == 1


def test_only_what_is_between_the_markers_is_replaced():
    page = f"# Methods\n{BEGIN}\nold\n{END}\nthe end\n"
    assert replace_between(page, "new") == f"# Methods\n{BEGIN}\n\nnew\n\n{END}\nthe end\n"
    with pytest.raises(ValueError, match="markers"):
        replace_between("# Methods\n", "new")


def test_the_page_is_what_the_results_give():
    results = json.loads((ROOT / "docs" / "methods.json").read_text())
    page = (ROOT / "docs" / "methods.md").read_text()
    remedy = "run python tools/compare_methods.py --table"
    assert page == replace_between(page, section(results, "methods.png")), remedy


def test_learning_rates_are_told_row_by_row():
    runs = [
        {**run_of("SiD", 1, point(100, 1, 0.5)), "rate": 1.0},
        {**run_of("SiD", 1, point(100, 1, 0.25)), "rate": 2.0},
    ]
    assert choices(runs).splitlines()[-1] == "| SiD | 0.500 | 0.250 |"


# --- what is run --------------------------------------------------------------------------


def test_every_row_is_a_run_that_the_presets_allow(tmp_path: Path):
    for row in ROWS:
        config = config_of(Job(row.name, 5, 768, 2, half=1, noise_seed=0), tmp_path)
        assert config.total_images == (384 if row.after else 768)
        assert (config.seed, config.snapshot.every_images) == (5, 384)
        assert config.learning_rate.ramp_down_images == 0
        assert row.after is None or row_named(row.after).domain == row.domain


def test_all_rates_are_scaled_together_by_the_row_or_by_the_choice(tmp_path: Path):
    def rates(rate: float | None) -> tuple[float, float]:
        config = config_of(Job("SiDA", 5, 768, 2, 1, 0, rate), tmp_path)
        return config.learning_rate.generator, config.objective.fake_score.learning_rate

    presets = rates(1.0)
    assert rates(2.0) == tuple(2 * rate for rate in presets)
    assert rates(None) == tuple(row_named("SiDA").rate * rate for rate in presets)


def test_a_row_brings_the_one_that_it_goes_on_from():
    assert [row.name for row in chosen_rows(["SiD2A"])] == ["SiD", "SiD2A"]
    with pytest.raises(UsageError, match="no row 'SID'; there are: SiD; "):
        chosen_rows(["SID"])


def test_a_result_is_known_by_all_that_it_depends_on():
    names = [
        job.name
        for words in ([], ["--images", "768"])
        for job in reported_jobs(ROWS, parse_options(words))
    ]
    assert len(set(names)) == len(names)


def test_images_that_do_not_divide_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["compare_methods.py", "--images", "1000"])
    assert main() == 2
    assert capsys.readouterr().err == "error: --images 1000 is no multiple of 384\n"


def test_results_that_were_written_stay_while_their_rows_do(tmp_path: Path):
    (job,) = jobs_named("SiD")
    stays = {**described(job), "points": []}
    changed, gone = {**stays, "name": "sid-5-0"}, {**stays, "row": "SiE"}
    docs = tmp_path / "docs"
    docs.mkdir()
    results = {"images": 768, "runs": [changed, stays, gone]}
    (docs / "methods.json").write_text(json.dumps(results))
    options = parse_options(["--docs", str(docs), "--work", str(tmp_path)])
    others = jobs_named("SiDA", "GDD")
    measured_now = {**described(others[0]), "points": []}
    (tmp_path / f"{others[0].name}.json").write_text(json.dumps(measured_now))
    assert results_of(others, options) == [stays, measured_now]


def test_results_of_other_images_are_not_overwritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "methods.json").write_text('{"images": 768, "runs": []}')
    monkeypatch.setattr("sys.argv", ["compare_methods.py", "--short", "--docs", str(tmp_path)])
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'methods.json'} has runs of 768 images, not 256: ")


FAKE_RUN = f"""
import json, sys, time
sys.path[:0] = {[str(ROOT / "tools"), str(ROOT)]!r}
from compare_job import Job
work, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
print("began", flush=True)
if job.row == "SiDA":
    sys.exit("no such luck")
if job.row == "GDD":
    time.sleep(60)
open(f"{{work}}/{{job.name}}.json", "x").write("{{}}")
"""


@pytest.fixture
def fake_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of SiD end well, those of SiDA badly, and those of GDD not at all; -> their folder."""
    (tmp_path / "compare_run.py").write_text(FAKE_RUN)
    monkeypatch.setattr(compare_workers, "TOOLS", tmp_path)
    return tmp_path


def jobs_named(*names: str) -> list[Job]:
    return [Job(name, 5, 768, 2, half=1, noise_seed=0) for name in names]


def test_a_run_that_fails_stops_no_other_and_what_is_done_is_done(fake_runs: Path):
    jobs = jobs_named("SiDA", "SiD", "SiD2A")
    assert run_all(jobs, fake_runs, at_once=1) == jobs[:1]
    assert "no such luck" in (fake_runs / f"{jobs[0].name}.log").read_text()
    # A second run of the others would find its result there, and fail.
    assert run_all(jobs, fake_runs, at_once=1) == jobs[:1]


def test_no_run_outlives_the_comparison(fake_runs: Path):
    (job,) = jobs_named("GDD")
    log = fake_runs / f"{job.name}.log"
    with Workers(fake_runs, at_once=1) as workers:
        outcome = workers.map([job])
        while not (log.is_file() and "began" in log.read_text()):
            time.sleep(0.01)
    assert list(outcome) == [False]  # at once, not after a minute


@pytest.mark.distributed
def test_a_short_comparison_fills_the_page_and_is_not_run_twice(start: Start, tmp_path: Path):
    docs, work = tmp_path / "docs", tmp_path / "work"
    words = ["--short", "--work", work, "--docs", docs]
    first = start(ROOT / "tools" / "compare_methods.py", *words)
    assert "done: SiD2A, seed 101" in first.communicate()[0]
    assert first.returncode == 0
    runs = json.loads((docs / "methods.json").read_text())["runs"]
    assert [(run["row"], [p["images"] for p in run["points"]]) for run in runs] == [
        ("SiD", [128, 256]),
        ("SiD2A", [128]),
    ]
    assert 0 < runs[0]["points"][0]["distance"] < 5
    page = (docs / "methods.md").read_text()
    assert page.count("| SiD2A | ") == 1
    assert (docs / "methods.png").stat().st_size > 1000

    (docs / "methods.md").write_text(f"# Methods\n{BEGIN}\n{END}\n")
    again = start(ROOT / "tools" / "compare_methods.py", *words)
    assert "done" not in again.communicate()[0]
    assert "| SiD2A | " in (docs / "methods.md").read_text()
