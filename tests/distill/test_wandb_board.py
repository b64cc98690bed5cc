"""Runs on Weights & Biases, with the real package; its server is a few lines (wandb_server.py)."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sid_scale import cli
from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig
from sid_scale.distill import wandb_board
from sid_scale.distill.loop import train
from sid_scale.distill.wandb_board import check_wandb
from sid_scale.metrics_log import read_metrics
from tests.distill.wandb_files import attempts, config_of, history, run_of
from tests.distill.wandb_server import serving
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, settings

KEY = "0" * 40
NOBODY = "http://127.0.0.1:9"  # a port on which nobody listens
OFFLINE = {"log.wandb.project": "digits", "log.wandb.mode": "offline"}
ONLINE = {"log.wandb.project": "digits", "log.wandb.mode": "online"}


def at_home(folder: Path, server: str = NOBODY, key: str = KEY) -> dict[str, str]:
    """An environment in which wandb knows nothing but what is here."""
    home = {name: str(folder) for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    return {**home, "NETRC": str(folder / "netrc"), "WANDB_BASE_URL": server, "WANDB_API_KEY": key}


# --- offline -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose first attempt died at 24 images, its newest checkpoint being that
    of 16, and whose second went on from there to 32."""
    folder = prepare(tmp_path_factory.mktemp("offline"))
    run_ranks(2, _two_attempts, folder)
    return folder / "run"


def _two_attempts(rank: int, folder: Path) -> None:
    os.environ.update(at_home(folder))
    with redirect_stdout(StringIO()):
        train(config(folder, total_images=24, **OFFLINE), joined())
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder / "run" / "checkpoints" / "000000000024")
        dist.barrier()
        train(config(folder, total_images=32, **OFFLINE), joined())


@pytest.mark.distributed
def test_all_attempts_are_one_run_named_after_the_folder(interrupted: Path):
    first, second = map(run_of, attempts(interrupted))
    assert first.run_id == second.run_id
    assert (first.project, first.display_name) == ("digits", "run")


@pytest.mark.distributed
def test_what_tensorboard_shows_is_there_at_the_same_images_seen(interrupted: Path):
    board = EventAccumulator(str(interrupted / "tensorboard"), {"scalars": 0, "images": 0})
    board.Reload()
    rows = [row for path in attempts(interrupted) for row in history(path)]
    for name in board.Tags()["scalars"]:
        shown = {event.step: event.value for event in board.Scalars(name)}
        logged = {row["images_seen"]: row[name] for row in rows if name in row}
        assert logged == pytest.approx(shown, rel=1e-6, nan_ok=True), name
    pictures = {row["images_seen"]: row["samples"] for row in rows if "samples" in row}
    assert list(pictures) == [event.step for event in board.Images("samples")] == [0, 16, 32]
    for picture in pictures.values():
        assert (picture["width"], picture["height"]) == (16, 16)
        assert list((interrupted / "wandb").glob(f"*/files/{picture['path']}"))


@pytest.mark.distributed
def test_what_a_resumed_run_repeats_comes_later_at_the_same_images_seen(interrupted: Path):
    first, second = map(history, attempts(interrupted))
    scalars = [
        [row["images_seen"] for row in rows if "samples" not in row] for rows in (first, second)
    ]
    assert scalars == [[8, 16, 24], [24, 32]]
    steps = [row["_step"] for row in (*first, *second)]
    assert steps == list(range(len(steps)))  # none is dropped, none overwritten


@pytest.mark.distributed
def test_wandb_sync_makes_one_run_of_all_attempts(interrupted: Path):
    with serving() as server:
        sync(interrupted, server.url)
        rows = [json.loads(row) for row in server.history]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["images_seen"] for row in rows if "samples" not in row] == [
        *(8, 16, 24),
        *(24, 32),
    ]


def sync(run: Path, server: str) -> None:
    """Sends what a run has logged offline."""
    subprocess.run(
        [Path(sys.executable).with_name("wandb"), "sync", "--yes", run / "wandb"],
        cwd=run,  # it logs to `wandb/` there
        env={**os.environ, **at_home(run, server)},
        check=True,
        capture_output=True,
    )


@pytest.mark.distributed
def test_the_settings_of_the_last_attempt_are_logged(interrupted: Path):
    logged = config_of(attempts(interrupted)[-1])
    assert (logged["batch_size"], logged["total_images"]) == (8, 32)
    assert logged["objective"]["fake_score"]["learning_rate"] == 5e-5


# --- online --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with servers that behave or do not, and of what each said."""
    folder = prepare(tmp_path_factory.mktemp("online"))
    run_ranks(1, _online, folder)
    return folder


def _online(rank: int, folder: Path) -> None:
    with serving() as server:
        _train(folder, "requeued", server.url, total_images=16)
        _train(folder, "requeued", server.url, total_images=32)
        (folder / "history.json").write_text(json.dumps([json.loads(r) for r in server.history]))
    # All of it is waited out below, and wandb has to begin within.
    wandb_board.PATIENCE_SECONDS = 10.0
    with serving(dies=True) as server:
        _train(folder, "left", server.url)
        assert server.is_dead
    _train(folder, "alone", NOBODY)
    _freeze_when_metrics_come()
    _train(folder, "frozen", NOBODY, **{"log.wandb.mode": "offline"})


def _train(folder: Path, name: str, server: str, **given: object) -> None:
    os.environ.update(at_home(folder, server))
    settings_of_run = {**ONLINE, "total_images": 16, "run_dir": folder / name, **given}
    with redirect_stdout(StringIO()) as told:
        train(config(folder, **settings_of_run), joined())
    (folder / f"{name}.txt").write_text(told.getvalue())
    wandb.teardown()


def _freeze_when_metrics_come() -> None:
    """From now on wandb's process hangs when there is something to log."""
    log = wandb_board.WandbBoard.scalars

    def freeze_and_log(*arguments: Any) -> None:
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.suspend()
        log(*arguments)

    wandb_board.WandbBoard.scalars = freeze_and_log
    wandb.teardown = lambda: None  # there is nothing left to tear down


@pytest.mark.distributed
def test_online_a_requeued_run_goes_on_behind_what_the_server_has(online: Path):
    rows = json.loads((online / "history.json").read_text())
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["images_seen"] for row in rows if "samples" not in row] == [8, 16, 24, 32]
    assert "/entity/project/runs/" in (online / "requeued.txt").read_text()


@pytest.mark.faults
@pytest.mark.distributed
@pytest.mark.parametrize("name", ["left", "alone"])
def test_a_server_that_fails_ends_no_run_and_loses_nothing(online: Path, name: str):
    assert "done after 16 images" in (online / f"{name}.txt").read_text()
    (path,) = [path for path in attempts(online / name) if history(path)]
    logged = [row["loss/fake_score"] for row in history(path) if "loss/fake_score" in row]
    assert logged == [record["loss/fake_score"] for record in read_metrics(online / name)]
    assert run_of(path).run_id == identity(online / name)


@pytest.mark.faults
@pytest.mark.distributed
def test_without_a_server_an_attempt_is_offline_and_says_how_to_send_it(online: Path):
    told = (online / "alone.txt").read_text()
    assert "wandb: the server cannot be used (" in told
    assert f"logged offline: `wandb sync {online / 'alone' / 'wandb' / 'offline-run-'}" in told


def test_an_offline_attempt_that_is_sent_after_an_online_one_is_added_behind_it(
    wanted, monkeypatch: pytest.MonkeyPatch
):
    """The package sends all rows; their steps go back. What a server then shows is its matter."""
    run = Path(wanted().run_dir)
    run.mkdir()
    with serving() as server:
        for name, value in at_home(run, server.url).items():
            monkeypatch.setenv(name, value)
        for mode, seen in (("offline", (8, 16)), ("online", (24, 32))):
            board = wandb_board.WandbBoard(wanted(mode=mode), lambda line: None)
            for images_seen in seen:
                board.scalars({"loss": 1.0}, images_seen)
            board.close(failed=False)
            wandb.teardown()
        sync(run, server.url)
        rows = [json.loads(row) for row in server.history]
    assert [row["images_seen"] for row in rows] == [24, 32, 8, 16]
    assert [row["_step"] for row in rows] == [2, 3, 0, 1]


@pytest.mark.faults
@pytest.mark.distributed
def test_wandbs_process_may_hang(online: Path):
    told = (online / "frozen.txt").read_text()
    assert "done after 16 images" in told
    assert "wandb: its process does not answer and is ended" in told


def identity(run: Path) -> str:
    return json.loads((run / "wandb.json").read_text())["id"]


# --- before anything starts ----------------------------------------------------------------------


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A config that asks for wandb, at home; wandb has forgotten what it knew."""
    (tmp_path / "run.yaml").write_text("")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in at_home(tmp_path, key="").items():
        monkeypatch.setenv(name, value)

    def wanted(**overrides: str) -> RunConfig:
        given = {f"log.wandb.{name}": value for name, value in overrides.items()}
        return config(tmp_path, **{"log.wandb.project": "digits", **given})

    wandb.teardown()
    yield wanted
    wandb.teardown()


def test_without_a_login_nothing_starts_but_offline(wanted, monkeypatch: pytest.MonkeyPatch):
    for settings_of_run in (wanted(), wanted(mode="online")):
        with pytest.raises(ConfigError, match=r"nobody is logged in .*mode=offline"):
            check_wandb(settings_of_run)
    check_wandb(wanted(mode="offline"))
    check_wandb(wanted(mode="disabled"))
    monkeypatch.setenv("WANDB_MODE", "offline")  # a site's own choice
    check_wandb(wanted())


def test_with_a_login_it_starts(wanted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_wandb(wanted())


@pytest.mark.faults
@pytest.mark.parametrize(
    "kept",
    [
        '{"id": null, "next_step": 3}',
        '{"id": "../x", "next_step": 3}',
        '{"id": "ab", "next_step": 1e400}',
        '{"id": "ab", "next_step": -1}',
    ],
)
def test_where_the_id_is_damaged_another_run_begins(wanted, kept: str):
    settings_of_run = wanted(mode="offline")
    folder = Path(settings_of_run.run_dir)
    folder.mkdir()
    (folder / "wandb.json").write_text(kept)
    told: list[str] = []
    board = wandb_board.WandbBoard(settings_of_run, told.append)
    board.scalars({"loss": 1.0}, 8)
    board.close(failed=False)
    [path] = attempts(folder)
    assert [row["_step"] for row in history(path)] == [0]
    assert re.fullmatch("[0-9a-f]{8}", identity(folder))


@pytest.mark.faults
def test_what_wandb_refuses_is_one_error(wanted, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"log\.wandb: .*project"):
        check_wandb(wanted(project="a/b", mode="offline"))
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.raises(ConfigError, match=r"log\.wandb: WANDB_API_KEY invalid"):
        check_wandb(wanted())
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(ConfigError, match=r"WANDB_MODE=of is none of online, offline, disabled"):
        check_wandb(wanted())


@pytest.mark.faults
def test_without_the_package_nothing_starts(
    wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb(wanted(mode="disabled"))
    prepare(tmp_path)
    options = ["--check", "--config", str(tmp_path / "run.yaml")]
    assert cli.main(["train", *options, *settings(tmp_path, **OFFLINE)]) == 2
    assert "error: log.wandb: the package wandb is not installed: `pip install" in (
        capsys.readouterr().err
    )
