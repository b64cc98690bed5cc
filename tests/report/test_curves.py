"""Records as curves: over images, over hours of training, thinned."""

from pathlib import Path

import numpy as np
import pytest

from sid_scale.report.curves import (
    curve_of,
    hours_of,
    levels_of,
    metric_curve,
    metrics_of,
    thinned,
    training_evaluations,
    width_curves,
)
from sid_scale.report.read import RunFolder, read_run
from tests.report.folders import record, write_evaluation, write_records, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return read_run(write_run(tmp_path / "run"), "run")


def test_hours_are_those_of_training_not_of_the_pause_before_a_resumption():
    records = [record(360_000), record(720_000), record(1_080_000)]
    records[2]["time"] += 100_000
    assert hours_of(records) == pytest.approx([1, 2, 3])


def test_without_a_rate_the_clock_tells_and_without_both_nothing():
    records = [record(360_000), record(720_000), record(1_080_000)]
    del records[1]["images_per_second"]
    assert hours_of(records) == pytest.approx([1, 2, 3])
    del records[1]["time"]
    assert np.isnan(hours_of(records)).tolist() == [False, True, True]


def test_a_curve_leaves_out_what_was_not_finite(tmp_path: Path):
    write_records(tmp_path, [record(10, loss=1.0), record(20, loss=None), record(30, loss=3.0)])
    run = read_run(tmp_path, "run")
    curve = curve_of(run, "loss")
    assert curve is not None
    assert (curve.images.tolist(), curve.values.tolist()) == ([10, 30], [1, 3])
    assert curve_of(run, "no such") is None


def test_an_evaluation_of_its_own_takes_the_place_of_the_one_in_training(run: RunFolder):
    curve = metric_curve(run, "fd_pixels")
    assert curve is not None
    assert curve.images.tolist() == [2000, 4000]
    assert curve.values.tolist() == [1.0, 0.625]  # 0.5 while training
    assert curve.hours == pytest.approx([2000 / 360_000, 4000 / 360_000])
    assert metrics_of(run) == {"fd_pixels"}


def test_figures_of_other_numbers_of_images_do_not_bend_a_curve(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_evaluation(folder / "evaluation" / "final" / "metrics.json", fd_pixels=0.1, num=100_000)
    curve = metric_curve(read_run(folder, "run"), "fd_pixels")
    assert curve is not None
    assert (curve.values.tolist(), curve.num) == ([1.0, 0.5], 50_000)


def test_of_what_was_measured_in_training_the_last_and_the_best_are_told(tmp_path: Path):
    figures = {1000: 3.0, 2000: 1.0, 3000: 2.0}
    records = [record(n, evaluation__fd_pixels=fd) for n, fd in figures.items()]
    write_records(tmp_path, [*records, record(4000)])
    told = training_evaluations(read_run(tmp_path, "run"))
    assert [(e.network.images_seen, e.values["fd_pixels"]) for e in told] == [(2000, 1), (3000, 2)]
    rising = [record(n, evaluation__precision=n / 4000) for n in figures]
    write_records(tmp_path, rising)
    told = training_evaluations(read_run(tmp_path, "run"))
    assert [e.network.images_seen for e in told] == [3000]


def test_the_best_is_that_of_the_metric_which_decided_in_the_run(tmp_path: Path):
    figures = {1000: (3.0, 0.1), 2000: (1.0, 0.2), 3000: (2.0, 0.9), 4000: (4.0, 0.05)}
    write_records(
        tmp_path,
        [record(n, evaluation__fid=fid, evaluation__is=i) for n, (fid, i) in figures.items()],
    )

    def best(settings: str) -> int | None:
        (tmp_path / "config.yaml").write_text(f"evaluation: {settings}")
        return training_evaluations(read_run(tmp_path, "run"))[0].network.images_seen

    assert best("{metrics: [fd_pixels, fid]}") == 2000
    assert best("{metrics: [fid, is], best_by: null}") == 2000
    assert best("{metrics: [fid, is], best_by: is}") == best("{metrics: [is, fid]}") == 3000


def test_teachers_are_levels_by_their_number_of_evaluations(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    more = {"network__evaluations": 35, "network__guidance": 1.4}
    write_evaluation(folder / "evaluation" / "t35" / "metrics.json", "teacher", **more)
    levels = levels_of([read_run(folder, "run")], "fd_pixels")
    assert [(level.label, level.value) for level in levels] == [
        ("teacher, 35 NFE, guidance 1.4", 0.5),
        ("teacher, 63 NFE", 0.375),
    ]


def test_two_teachers_are_told_apart(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    other = {"network__sha256": "ef" * 32, "network__path": "/models/small"}
    write_evaluation(folder / "evaluation" / "other" / "metrics.json", "teacher", **other)
    labels = [level.label for level in levels_of([read_run(folder, "run")], "fd_pixels")]
    assert len(labels) == len(set(labels)) == 2
    assert "teacher, 63 NFE (small)" in labels


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("/a/teacher", "/b/teacher"), {"a/teacher", "b/teacher"}),
        (("/a/teacher", "/a/teacher"), {"0" * 8, "1" * 8}),
        (("", "/a/teacher"), {"0" * 8, "1" * 8}),
    ],
)
def test_two_teachers_of_the_same_title_never_look_the_same(
    tmp_path: Path, paths: tuple[str, str], named: set[str]
):
    folder = write_run(tmp_path / "run")
    for i, path in enumerate(paths):
        fields = {"network__sha256": str(i) * 64, "network__path": path, "network__evaluations": 5}
        write_evaluation(folder / "evaluation" / str(i) / "metrics.json", "teacher", **fields)
    labels = {level.label for level in levels_of([read_run(folder, "run")], "fd_pixels")}
    assert {f"teacher, 5 NFE ({name})" for name in named} <= labels


def test_a_thinned_curve_hides_no_peak(tmp_path: Path):
    losses = np.random.default_rng(0).normal(size=1005)
    losses[500] = 100
    write_records(tmp_path, [record(10 * i, loss=x) for i, x in enumerate(losses.tolist())])
    curve = curve_of(read_run(tmp_path, "run"), "loss")
    assert curve is not None
    few = thinned(curve, most=100)
    assert len(few.values) <= 100
    assert few.per_point == 11
    assert few.high.max() == 100
    assert few.low.min() == losses.min()
    assert few.values[0] == pytest.approx(losses[:11].mean())
    assert few.values[-1] == pytest.approx(losses[1005 - 1005 % 11 :].mean())
    assert thinned(curve, most=1005) is curve


def test_averages_of_other_widths_are_curves_of_their_own(tmp_path: Path):
    """One for each moment, number of images, first seed and reference: what can be compared. That
    over images is the published average's."""
    folder = write_run(tmp_path / "run")
    before = metric_curve(read_run(folder, "run"), "fd_pixels")
    for name, fd, more in [
        ("a", 0.25, {"network__relative_width": 0.1}),
        ("b", 0.5, {"network__relative_width": 0.05}),
        ("c", 0.75, {"network__relative_width": 0.05, "network__images_seen": 2000}),
        ("d", 1.0, {"network__relative_width": 0.05, "num": 9}),
        ("e", 1.25, {"network__relative_width": 0.07, "first_seed": 1000}),
        ("f", 1.5, {"network__relative_width": 0.08, "references": {"fd_pixels": "01"}}),
    ]:
        write_evaluation(folder / "evaluation" / name / "metrics.json", fd_pixels=fd, **more)
    run = read_run(folder, "run")
    found = [
        (curve.run, curve.num, curve.widths.tolist(), curve.values.tolist())
        for curve in width_curves(run, "fd_pixels")
        if curve.widths is not None
    ]
    assert found == [
        ("2,000 images seen, seeds from 0", 50_000, [0.05], [0.75]),
        ("4,000 images seen, seeds from 0", 9, [0.05], [1.0]),
        ("4,000 images seen, seeds from 0", 50_000, [0.08], [1.5]),
        ("4,000 images seen, seeds from 0", 50_000, [0.05, 0.1], [0.5, 0.25]),
        ("4,000 images seen, seeds from 1,000", 50_000, [0.07], [1.25]),
    ]
    after = metric_curve(run, "fd_pixels")
    assert before is not None
    assert after is not None
    assert after.values.tolist() == before.values.tolist()
