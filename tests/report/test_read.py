"""Reading run folders, whole ones and others."""

import json
from pathlib import Path
from typing import Any

import pytest

from sid_scale.report.curves import metric_curve
from sid_scale.report.read import ReportError, read_run, read_runs
from tests.report.folders import record, write_evaluation, write_records, write_run


def images_seen(folder: Path) -> list[float | None]:
    return [r["images_seen"] for r in read_run(folder, "run").records]


def test_a_finished_run_is_read_whole(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run"), "run")
    assert run.images_seen == 4000
    assert run.config["method"] == "sida"
    assert run.environment["zero_stage"] == 2
    assert [grid.images_seen for grid in run.grids] == list(range(0, 4001, 500))
    assert {e.network.kind: e.values for e in run.evaluations} == {
        "generator": {"fd_pixels": 0.625},
        "teacher": {"fd_pixels": 0.375},
    }
    assert run.notices == ()


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, folder: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=f"{folder}: no .*run_dir"):
        read_runs([tmp_path / folder])


def test_a_half_written_last_line_is_a_run_at_work(tmp_path: Path):
    write_records(tmp_path, [record(10), record(20)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"images_seen": 30, "lo')
    run = read_run(tmp_path, "run")
    assert [r["images_seen"] for r in run.records] == [10, 20]
    assert not any("metrics.jsonl" in notice for notice in run.notices)


def test_lines_that_are_no_records_are_left_out_and_told(tmp_path: Path):
    lines = [json.dumps(record(10)), "{", "[1]", '{"images_seen": true}', "\x00", "[" * 100_000]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(record(20)), ""]))
    run = read_run(tmp_path, "run")
    assert [r["images_seen"] for r in run.records] == [10, 20]
    [notice] = [notice for notice in run.notices if "metrics.jsonl" in notice]
    assert "5 of 7 lines" in notice
    assert "2, 3, 4, 5, 6" in notice


def test_values_that_are_not_finite_are_nothing(tmp_path: Path):
    huge = 10**400
    write_records(tmp_path, [record(10, a=None, b=float("nan"), c=float("inf"), d=huge, e="x")])
    [only] = read_run(tmp_path, "run").records
    assert [only["a"], only["b"], only["c"], only["d"]] == [None] * 4
    assert "e" not in only


def test_a_record_takes_the_place_of_those_that_it_repeats(tmp_path: Path):
    write_records(tmp_path, [record(10), record(20), record(30), record(20), record(25)])
    assert images_seen(tmp_path) == [10, 20, 25]


def test_what_is_damaged_or_missing_is_told(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    (run / "environment.json").write_text("[]")
    write_evaluation(run / "evaluation" / "new" / "metrics.json", format_version=7)
    (run / "evaluation" / "final" / "metrics.json").write_text('{"fid": ')
    (run / "summary.json").write_text("[" * 100_000)
    read = read_run(run, "run")
    for named in ("config.yaml", "environment.json", "format_version 7", "final", "summary.json"):
        assert any(named in notice for notice in read.notices), named
    assert [e.network.kind for e in read.evaluations] == ["teacher"]


def test_what_has_just_begun_is_a_run(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("method: sid")
    run = read_run(tmp_path, "run")
    assert (run.images_seen, run.records, run.grids, run.generator) == (0, (), (), None)


def test_the_last_snapshot_stands_for_a_generator_that_is_not_there_yet(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for name in ("000000000900", "000000001000", ".000000002000.partial"):
        (run / "snapshots" / name).mkdir(parents=True)
    assert read_run(run, "run").generator == run / "snapshots" / "000000001000"
    (run / "generator").mkdir()
    assert read_run(run, "run").generator == run / "generator"


def test_a_teachers_folders_lie_in_one_another(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation" / "teacher" / "17" / "metrics.json", "teacher")
    sources = [str(e.source) for e in read_run(run, "run").evaluations]
    assert "evaluation/teacher/17/metrics.json" in sources


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path):
    a, b = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
    assert [run.name for run in read_runs([a, b])] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([a, a / ".." / "run"])] == ["run"]


def demo_figures(run: Path, summary: dict[str, Any]) -> dict[str, float]:
    """What a run's page knows from the demo's summary, by network."""
    (run / "summary.json").write_text(json.dumps(summary))
    return {
        e.network.title: e.values["demo_fd"]
        for e in read_run(run, "run").evaluations
        if "demo_fd" in e.values
    }


def test_the_demos_summary_is_an_evaluation_of_every_snapshot(tmp_path: Path):
    run = write_run(tmp_path / "run")
    summary = {"teacher_fd_17": 0.2, "student_fd": 0.3, "student_fd_start": 1, "images_seen": 4000}
    ends = {
        "teacher, 17 NFE": 0.2,
        "generator after 0 images": 1.0,
        "generator after 4,000 images": 0.3,
    }
    assert demo_figures(run, summary) == ends
    snapshots = {"0": 1, "1000": 0.7, "3000": 0.4, "4000": 0.3, "-5": 1, "x": 1, "2000": None}
    assert demo_figures(run, {**summary, "student_fd_snapshots": snapshots}) == {
        **ends,
        "generator after 1,000 images": 0.7,
        "generator after 3,000 images": 0.4,
    }
    curve = metric_curve(read_run(run, "run"), "demo_fd")
    assert curve is not None
    assert curve.images.tolist() == [0, 1000, 3000, 4000]
