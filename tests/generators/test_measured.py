"""What was measured of a generator is found, and what was measured of others is left out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sid_scale.generators.measured import Figure, find_figures
from sid_scale.hashing import sha256_file
from sid_scale.measurements import MeasurementError
from tests.generators.tiny import tiny_generator
from tests.report.folders import record, write_evaluation, write_records

SEEN = 4000
BASIS = {
    "num": 10_000,
    "first_seed": 7,
    "labels": "uniform",
    "references": {"fid": "ef" * 32},
    "detectors": {},
    "vae_dtype": "float32",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is evaluated while it trains."""
    run = tmp_path / "run"
    write_records(run, [record(n, evaluation__fid=20_000 / n) for n in (1000, 2000, SEEN)])
    write_basis(run, since_images=0)
    return run


@pytest.fixture
def generator(run: Path) -> Path:
    return tiny_generator(run / "generator", images_seen=SEEN)


def write_basis(run: Path, **fields: Any) -> None:
    (run / "evaluation.json").write_text(json.dumps({"measured_with": BASIS, **fields}))


def evaluate(file: Path, generator: Path, **fields: Any) -> Path:
    digest = sha256_file(generator / "model.safetensors")
    return write_evaluation(file, network__sha256=digest, **fields)


def values(figures: list[Figure]) -> list[tuple[str, float | str]]:
    return [(figure.metric, figure.value) for figure in figures]


def test_a_runs_own_evaluation_is_found_with_its_protocol(generator: Path):
    [figure] = find_figures(generator)
    assert (figure.metric, figure.value) == ("fid", 5.0)
    assert figure.protocol == {
        "images": 10_000,
        "first_seed": 7,
        "labels": "uniform",
        "nfe": 1,
        "file": "metrics.jsonl",
        "reference_sha256": "ef" * 32,
    }


@pytest.mark.parametrize(
    ("name", "images_seen", "figures"),
    [
        ("best_generator", 2000, [("fid", 10.0)]),
        ("snapshots/000000001000", 1000, [("fid", 20.0)]),
        ("snapshots/000000003000", 3000, []),
        ("published", SEEN, []),
    ],
)
def test_it_is_of_what_the_run_wrote_then(run: Path, name: str, images_seen: int, figures: list):
    folder = tiny_generator(run / name, images_seen=images_seen)
    assert values(find_figures(folder)) == figures


def test_an_average_of_after_the_run_was_not_measured_by_it(run: Path):
    folder = tiny_generator(run / "generator", images_seen=SEEN, post_hoc_ema={"snapshots": {}})
    assert find_figures(folder) == []


def test_figures_of_which_nobody_knows_how_they_were_measured_are_left_out(
    run: Path, generator: Path
):
    write_basis(run, since_images=SEEN)
    assert find_figures(generator) == []
    (run / "evaluation.json").write_text("[")
    assert find_figures(generator) == []


def test_evaluations_of_the_same_weights_are_found_and_stand_first(run: Path, generator: Path):
    evaluate(run / "evaluation" / "a" / "b" / "metrics.json", generator, fd_pixels=0.25)
    evaluate(generator / "evaluation" / "metrics.json", generator, fd_pixels=0.5, num=100)
    write_evaluation(run / "evaluation" / "other" / "metrics.json")
    evaluate(run / "evaluation" / "t" / "metrics.json", generator, network__kind="teacher")
    found = find_figures(generator)
    assert values(found) == [("fd_pixels", 0.25), ("fid", 5.0), ("fd_pixels", 0.5)]
    files = ["evaluation/a/b/metrics.json", "metrics.jsonl", "evaluation/metrics.json"]
    assert [figure.protocol["file"] for figure in found] == files


def test_a_generator_elsewhere_is_told_its_run(run: Path, generator: Path, tmp_path: Path):
    evaluate(run / "evaluation" / "final" / "metrics.json", generator)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(generator, elsewhere)
    assert find_figures(elsewhere) == []
    assert values(find_figures(elsewhere, run)) == [("fd_pixels", 0.5)]


def test_the_demos_judge_is_of_the_last_generator(run: Path, generator: Path):
    (run / "metrics.jsonl").write_text("")
    summary = {"student_fd": 0.085, "images_seen": SEEN, "judged_images": 1797, "x": 0.25}
    (run / "summary.json").write_text(json.dumps(summary))
    [figure] = find_figures(generator)
    assert (figure.metric, figure.value) == ("demo_fd", 0.085)
    known = {"images": 1797, "reference": "all real digits", "nfe": 1, "file": "summary.json"}
    assert figure.protocol == known
    earlier = tiny_generator(run / "snapshots" / "000000001000", images_seen=1000)
    assert find_figures(earlier) == []


def test_files_of_any_figures_count_besides(generator: Path, tmp_path: Path):
    (tmp_path / "plain.json").write_text(json.dumps({"fid": 3, "x": {"y": "z", "w": [1]}}))
    file = evaluate(generator / "evaluation" / "metrics.json", generator)
    found = find_figures(generator, files=[tmp_path / "plain.json", file])
    assert values(found) == [("fd_pixels", 0.5), ("fid", 5.0), ("fid", 3), ("x.y", "z")]
    assert found[2].protocol == {}


@pytest.mark.faults
def test_files_that_cannot_serve_are_told(run: Path, generator: Path, tmp_path: Path):
    other = write_evaluation(tmp_path / "other.json")
    with pytest.raises(MeasurementError, match=r"other\.json: figures of other weights than this"):
        find_figures(generator, files=[other])
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(MeasurementError, match=r"list\.json: holds no JSON object"):
        find_figures(generator, files=[tmp_path / "list.json"])


@pytest.mark.faults
@pytest.mark.parametrize("text", ["[1]", '{"fid": 3.0}', "null"])
def test_a_foreign_file_below_evaluation_is_passed_over_with_one_note(
    text: str, run: Path, generator: Path, capsys: pytest.CaptureFixture[str]
):
    evaluate(run / "evaluation" / "a" / "metrics.json", generator, fd_pixels=0.25)
    foreign = run / "evaluation" / "b" / "metrics.json"
    foreign.parent.mkdir()
    foreign.write_text(text)
    assert values(find_figures(generator)) == [("fd_pixels", 0.25), ("fid", 5.0)]
    note = f"note: {foreign}: not written by `sid-scale evaluate`; it is passed over\n"
    assert capsys.readouterr().err == note


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"fid": ', "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ('{"format_version": 1, "fid": null}', "holds no metric with a finite value"),
        ('{"format_version": 9, "fid": 3.0}', "format_version 9, not 1"),
    ],
)
def test_a_damaged_file_below_evaluation_is_one_error_that_says_what_to_do(
    text: str, why: str, run: Path, generator: Path
):
    damaged = run / "evaluation" / "final" / "metrics.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text(text)
    remedy = "measure again with `sid-scale evaluate`, or move the file out of evaluation/"
    with pytest.raises(MeasurementError, match=rf"final/metrics\.json: .*{why}.*; {remedy}"):
        find_figures(generator)


@pytest.mark.faults
def test_protocols_that_are_odd_lose_what_is_odd(generator: Path):
    odd = {"fd_pixels": {"values": [1, 2], "min": "x", "std": None}}
    evaluate(
        generator / "evaluation" / "metrics.json",
        generator,
        repeats=odd,
        references={"fd_pixels": {"file": 5, "sha256": ["x"]}},
        settings={"labels": "/home/ada/shards", "dtype": 3},
        num="many",
    )
    figure = next(f for f in find_figures(generator) if f.metric == "fd_pixels")
    assert figure.protocol == {
        "first_seed": 0,
        "labels": "shards",
        "nfe": 1,
        "file": "evaluation/metrics.json",
    }
