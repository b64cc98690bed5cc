"""Traces of a few iterations of a run."""

import gzip
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from sid_scale.distill.loop import train
from sid_scale.distill.profile import FOLDER
from sid_scale.metrics_log import read_metrics
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs on two ranks; a text beside each has what it said."""
    folder = prepare(tmp_path_factory.mktemp("profile"))
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    def run(name: str, **given: object) -> None:
        with redirect_stdout(StringIO()) as told:
            settings = {f"profile.{key}": value for key, value in given.items()}
            total = settings.pop("profile.total_images", 32)
            train(config(folder, run_dir=folder / name, total_images=total, **settings), joined())
        if rank == 0:
            (folder / f"{name}.txt").write_text(told.getvalue())

    run("plain")
    run("window", at_images=6, steps=2)
    run("all", at_images=24, steps=5, ranks="all", memory=False)
    run("resumed", total_images=16)
    run("resumed", at_images=8)
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / FOLDER).write_text("no folder can be made here")
    run("full", at_images=8)


def spans(run: Path, name: str) -> list[str]:
    """Names of a trace's spans of the training loop, in the order of time."""
    with gzip.open(run / FOLDER / name) as file:
        events = json.load(file)["traceEvents"]
    marked = sorted((e["ts"], e["name"]) for e in events if e.get("cat") == "user_annotation")
    return [name for _, name in marked if name.startswith(("iteration", "fake", "generator"))]


def test_the_window_begins_with_the_first_iteration_at_or_behind_its_place(runs: Path):
    assert [path.name for path in (runs / "window" / FOLDER).iterdir()] == [
        "000000000008-rank0.trace.json.gz"
    ]
    updates = ["fake_score update", "generator update"]
    assert spans(runs / "window", "000000000008-rank0.trace.json.gz") == [
        "iteration at 8 images",
        *updates,
        "iteration at 16 images",
        *updates,
    ]
    told = (runs / "window.txt").read_text()
    assert "profile: no memory snapshot: there is none of a CPU" in told
    assert f"profile: trace: {runs / 'window' / FOLDER}" in told


def test_all_ranks_write_one_if_asked_even_where_the_run_ends_first(runs: Path):
    names = sorted(path.name for path in (runs / "all" / FOLDER).iterdir())
    assert names == [f"000000000024-rank{rank}.trace.json.gz" for rank in (0, 1)]
    for name in names:
        assert spans(runs / "all", name)[0] == "iteration at 24 images"
    assert "no memory snapshot" not in (runs / "all.txt").read_text()


def test_a_resumed_run_leaves_out_a_window_that_has_passed(runs: Path):
    assert "resumed from" in (runs / "resumed.txt").read_text()
    assert not (runs / "resumed" / FOLDER).exists()


def test_a_profiled_run_trains_as_others_do(runs: Path):
    def losses(name: str) -> list[dict[str, float]]:
        return [
            {key: value for key, value in record.items() if key.startswith(("loss/", "grad_norm/"))}
            for record in read_metrics(runs / name)
        ]

    for name in ("window", "all"):
        assert losses(name) == losses("plain")


@pytest.mark.faults
def test_a_trace_that_cannot_be_written_is_told_not_fatal(runs: Path):
    told = (runs / "full.txt").read_text()
    assert "profile: trace not written: [Errno 17] File exists" in told
    assert "done after 32 images" in told
