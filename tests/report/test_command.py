"""The command: a page written, or one clear error."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sid_scale.cli import main
from tests.generators.tiny import save_generator, tiny_generator
from tests.report.folders import write_evaluation, write_run
from tests.tiny import ARCHITECTURE, tiny_folder, write_data


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose generator and data are here."""
    folder = write_run(tmp_path / "run")
    tiny_generator(folder / "generator")
    (folder / "generator" / "classes.txt").write_text("<b>ape</b>\nbee\ncat\ndog\n")
    data = write_data(tmp_path / "data")
    config = (folder / "config.yaml").read_text().replace("/data/digits", str(data))
    (folder / "config.yaml").write_text(config)
    return folder


def test_a_run_becomes_one_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(path for path in run.rglob("*"))
    out = tmp_path / "report.html"
    assert report(run, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert "class 0 &lt;b&gt;ape&lt;/b&gt; · seed 0" in page
    assert "nearest of 40 real images (all in" in page
    assert "Class by class" in page
    assert "averages of pixels" in page
    assert "VAE" not in page
    for head in re.findall("<thead>(.*?)</thead>", page):
        columns = [column for column in re.findall("<th.*?>(.*?)</th>", head) if column]
        assert len(columns) == len(set(columns))
    assert before == sorted(path for path in run.rglob("*"))
    assert [path for path in tmp_path.iterdir() if ".partial" in path.name] == []


def test_images_without_classes_are_called_nothing_of_a_class(tmp_path: Path):
    run = write_run(tmp_path / "run")
    network = tiny_folder(architecture=dataclasses.replace(ARCHITECTURE, label_dim=0))
    save_generator(run / "generator", network)
    data = write_data(tmp_path / "data")
    assert report(run, "--out", tmp_path / "r.html", "--data", data, "--samples", 2) == 0
    texts = re.findall("<figcaption>(.*?)</figcaption>", (tmp_path / "r.html").read_text())
    assert {"seed 0", "seed 1"} <= set(texts)
    assert len([text for text in texts if text.startswith("distance ")]) == 2 * 3


def test_the_limit_of_the_search_stands_on_the_page(run: Path, tmp_path: Path):
    assert report(run, "--out", tmp_path / "r.html", "--search", 20, "--samples", 2) == 0
    assert "nearest of 20 real images (the first of 40 in" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--samples", "0"], "No samples are compared (--samples 0)."),
        (["--data", "/nowhere"], "No samples are compared: /nowhere"),
        (["--generator", "."], "No samples are compared: .: no config.json there"),
        (["--vae", "."], "makes images without a VAE"),
    ],
)
def test_without_samples_the_page_says_why(
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert report(run, "--out", tmp_path / "r.html", *arguments) == 0
    assert reason in (tmp_path / "r.html").read_text()


def test_a_run_folder_makes_nobody_run_a_command(run: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    (run / "config.yaml").write_text(f"data: 'pipe:touch {mark};#'")
    assert report(run, "--out", tmp_path / "r.html") == 0
    assert not mark.exists()
    assert "The run&#39;s data is not here (pipe:touch" in (tmp_path / "r.html").read_text()


def test_metrics_of_a_teacher_go_to_all_runs_and_strangers_apart(tmp_path: Path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    teacher = write_evaluation(tmp_path / "t" / "metrics.json", "teacher", network__evaluations=17)
    stranger = write_evaluation(tmp_path / "s" / "metrics.json", network__images_seen=777)
    mine = {"network__path": str(runs[1] / "snapshots" / "1"), "network__images_seen": 888}
    own = write_evaluation(tmp_path / "o" / "metrics.json", **mine)
    out = tmp_path / "r.html"
    assert report(*runs, "--out", out, "--metrics", teacher, stranger, own) == 0
    page = out.read_text()
    assert page.count('<th scope="row">teacher, 17 NFE</th>') == 2
    assert page.count('<th scope="row">generator after 777 images</th>') == 1
    assert page.index("Other networks") < page.index("777 images") < page.index('id="run0"')
    assert page.index("888 images") > page.index('id="run1"')


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "bad.json").write_text(json.dumps({"fid": 1}))
    wrong: dict[str, list[object]] = {
        "no such folder": [tmp_path / "missing"],
        "no run folder": [tmp_path],
        "not written by `sid-scale evaluate`": [run, "--metrics", tmp_path / "bad.json"],
        "cannot be read as JSON": [run, "--metrics", tmp_path / "none.json"],
        "name one RUN_DIR": [run, write_run(tmp_path / "b"), "--generator", run / "generator"],
        "at least": [run, "--search", 0],
        "a folder that is there": [run, "--samples", 0, "--out", tmp_path / "none" / "r.html"],
    }
    for message, arguments in wrong.items():
        assert report(*arguments) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
