"""The page: what it says, and that it says so of anything."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sid_scale.report.pictures import chosen_grids
from sid_scale.report.read import Grid
from sid_scale.report.tables import NOTHING, heading
from tests.generators.tiny import tiny_generator
from tests.report.folders import (
    page_of,
    record,
    write_evaluation,
    write_records,
    write_run,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)'"


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def cells(page: str, row: str) -> list[str]:
    """Of the first table row that is named so."""
    found = re.search(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page)
    assert found, row
    return re.findall("<td>(.*?)</td>", found[1])


def test_it_tells_what_was_measured_and_how(tmp_path: Path):
    run = write_run(tmp_path / "run")
    repeats = {"fd_pixels": {"values": [1.0, 2.0, 3.0], "mean": 2.0, "min": 1.0, "std": 1.0}}
    write_evaluation(
        run / "evaluation" / "final" / "metrics.json", fd_pixels=2.0, precision=0.75,
        repeats=repeats, num=5000,
    )  # fmt: skip
    page = page_of(run)
    distance, precision, num, seeds, reference, weights, _ = cells(
        page, "generator after 4,000 images"
    )
    assert distance == "2.000<small>± 1, 1.000 to 3.000</small>"
    assert (precision, num, seeds) == ("0.7500", "5,000", "0 to 14,999<small>3 sets</small>")
    assert (reference, weights) == ("reference fd_pixels cdcdcdcdcd", "ababababab")
    assert cells(page, "teacher, 63 NFE")[:2] == ["0.3750", NOTHING]
    assert page.index("teacher, 63 NFE") < page.index("generator after 4,000 images")


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("kid", "KID ↓"),
        ("fdr", "FDr ↓"),
        ("coverage", "Coverage ↑"),
        ("kd_vit_large_patch16_224.mae", "KD-vit_large_patch16_224.mae ↓"),
        ("of_my_own", "of_my_own"),
    ],
)
def test_a_metric_has_an_arrow_towards_what_is_better_if_that_is_known(metric: str, shown: str):
    assert heading(metric) == shown


def test_a_file_that_serves_several_metrics_is_named_once(tmp_path: Path):
    run = write_run(tmp_path / "run")
    one, other = {"sha256": "1" * 64}, {"sha256": "2" * 64}
    write_evaluation(
        run / "evaluation" / "final" / "metrics.json",
        references={"fid": one, "fd_pixels": one},
        detectors={"fid": other, "is": other, "fd_dinov2": one},
    )
    assert (
        "reference 1111111111<small>detector fid, is 2222222222</small>"
        "<small>detector fd_dinov2 1111111111</small>"
    ) in cells(page_of(run), "generator after 4,000 images")


def test_curves_are_drawn_over_images_and_over_time(tmp_path: Path):
    page = page_of(write_run(tmp_path / "run"))
    for quantity in ("FD in pixels", "Fake score loss"):
        for axis in ("images seen", "training time"):
            assert page.count(f"<title>{quantity} over {axis}</title>") == 1
    assert page.count("<title>FD in pixels over") == 2


def sentence_of(run: Path) -> str:
    """The line below a run's name."""
    found = re.search(r'<p class="sentence">(.*?)</p>', page_of(run))
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("teacher", "shown"),
    [
        ("/models/edm2-img512-xs-2147483-0.135", "teacher EDM2-XS on ImageNet 512x512 (edm2-img"),
        ("/models/digits/", "teacher digits"),
        ("/models/digits/teacher", "digits/teacher"),
        ("teacher", "teacher"),
        ("me/digits@main", "teacher me/digits"),
        ("/cache/models--me--digits/snapshots/" + "0" * 40, "teacher me/digits"),
    ],
)
def test_a_teacher_has_a_name_that_distinguishes_it(tmp_path: Path, teacher: str, shown: str):
    run = write_run(tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("/models/digits", teacher)
    (run / "config.yaml").write_text(config)
    assert sentence_of(run).split(" · ")[2].startswith(shown)


def test_a_teacher_is_what_the_generator_says_that_it_is(tmp_path: Path):
    run = write_run(tmp_path / "run")
    tiny_generator(run / "generator", teacher_provenance={"what": "a teacher of\n<b>digits</b>"})
    line = (
        "SiDA · one step · a teacher of &lt;b&gt;digits&lt;/b&gt; · 2 CPU ranks · ZeRO 2 · float32"
    )
    assert sentence_of(run) == line
    (run / "generator" / "config.json").write_text("damaged")
    assert "teacher digits" in sentence_of(run)


def test_it_needs_nothing_from_outside(tmp_path: Path):
    for tag, attributes in Elements(page_of(write_run(tmp_path / "run"))).found:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
        assert "@import" not in (attributes.get("style") or "")


def test_strings_from_files_stay_strings(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"method: {json.dumps(HOSTILE)}\nteacher: {HOSTILE!r}\n")
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "ranks": HOSTILE}))
    write_records(run, [record(n, **{HOSTILE: 1.0, f"loss/{HOSTILE}": 1.0}) for n in (10, 20)])
    evaluation = {HOSTILE: 1.0, "references": {HOSTILE: {"sha256": HOSTILE}}}
    write_evaluation(run / "evaluation" / "x" / "metrics.json", **evaluation)
    write_evaluation(run / "evaluation" / "y" / "metrics.json", format_version=HOSTILE)
    page = page_of(run)
    assert "&lt;script&gt;" in page
    for tag, attributes in Elements(page).found:
        assert tag != "script"
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert attributes.get("src") != "x"


def test_what_is_missing_is_said_in_its_place(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("method: sid")
    page = page_of(tmp_path)
    for sentence in ("Nothing is measured yet", "No losses are recorded", "No sample grids",
                     "Nobody has looked.", "no environment.json"):  # fmt: skip
        assert sentence in page
    assert "<dt>Images seen</dt><dd>0</dd>" in page


def test_a_damaged_picture_is_told_and_the_others_shown(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "samples" / "000000004000.png").write_bytes(b"no picture")
    page = page_of(run)
    assert "000000004000.png: cannot be read as an image" in page
    assert page.count('<img src="data:image/png') == 5


def test_pictures_are_the_first_the_last_and_some_between():
    grids = tuple(Grid(n, Path(f"{n}.png")) for n in range(100))
    seen = [grid.images_seen for grid in chosen_grids(grids)]
    assert (seen[0], seen[-1], len(seen)) == (0, 99, 6)
    assert chosen_grids(grids[:3]) == list(grids[:3])
    assert chosen_grids(()) == []


def test_several_runs_stand_side_by_side(tmp_path: Path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (b / "config.yaml").write_text((b / "config.yaml").read_text().replace("0.003", "0.005"))
    page = page_of(a, b)
    assert cells(page, "objective.fake_score.learning_rate") == ["0.003", "0.005"]
    assert cells(page, "a")[-1] == "0.6250 (0.6250)"
    assert "run_dir</th>" not in page
    assert 'href="#run1"' in page
    assert 'id="run1"' in page
    assert page.count("<title>FD in pixels over images seen</title>") == 3
    assert "runs compared" not in page_of(a)


def test_the_same_runs_give_the_same_page(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert page_of(run) == page_of(run)


def test_thousands_of_records_make_no_giant(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_records(run, [record(10 * i, loss__x=float(i % 7)) for i in range(1, 8001)])
    page = page_of(run)
    assert "8,000 records: the line is the mean of up to 27, the band their range." in page
    assert len(page) < 1_000_000


def test_a_metric_over_the_width_of_the_average_is_a_plot(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    assert "Other widths of the average" not in page_of(folder)
    for width, fd in {0.05: 0.5, 0.07: 0.25, 0.1: 0.375}.items():
        file = folder / "evaluation" / "phema" / f"{width:g}" / "metrics.json"
        write_evaluation(file, fd_pixels=fd, network__relative_width=width)
    others = folder / "evaluation" / "others" / "metrics.json"
    write_evaluation(others, fd_pixels=0.625, network__relative_width=0.06, first_seed=1000)
    page = page_of(folder)
    assert "<title>FD in pixels over the relative width of the average</title>" in page
    assert "Best: 0.2500 at width 0.07, 4,000 images seen, seeds from 0. Best: 0.6250 at" in page
    assert cells(page, "generator after 4,000 images, average of width 0.07")[0] == "0.2500"
