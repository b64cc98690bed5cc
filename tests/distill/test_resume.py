"""A run that is interrupted, damaged or moved goes on as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from sid_scale import common_end
from sid_scale.config.run import ConfigError, RunConfig, load_config
from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.distill.loop import train
from sid_scale.networks.folder import load_network, save_network
from sid_scale.ranks import joined_ranks
from sid_scale.zero import writer
from sid_scale.zero.saved import STATE, TrainingStateError, read_manifest
from tests.conftest import flip_last_bit
from tests.launches import PATIENCE
from tests.programs import python
from tests.ranks import PRELOADED, free_port, joined, run_ranks
from tests.tiny import (
    config,
    prepare,
    settings,
    tiny_folder,
    write_data,
    write_deepspeed_json,
)

pytestmark = pytest.mark.distributed

KILLS = 15
FILES = 7  # of a rank in a checkpoint
ITERATIONS = 120
LOG = 24  # images


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[dict]:
    """What the records say of the mathematics; rates and memory are another matter."""
    told = ("images_seen", "skipped_updates", "loss/", "logits/", "grad_norm/", "sid_loss")
    return [{k: v for k, v in record.items() if k.startswith(told)} for record in records(run)]


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_network(a).state, load_network(b).state
    return all(torch.equal(left[name], right[name]) for name in left)


def assert_same_run(whole: Path, parts: Path) -> None:
    """Two run folders end in the same checkpoint, bit by bit, and have recorded the same losses."""
    ours, theirs = (read_manifest(run / "checkpoints" / "latest").files for run in (whole, parts))
    assert ours.keys() == theirs.keys()
    differ = [file for file in ours if ours[file] != theirs[file]]
    assert differ == [STATE]  # which says when
    assert losses(whole) == losses(parts)


# --- kills --------------------------------------------------------------------------------


@pytest.mark.faults
def test_kills_at_random_moments_change_nothing(tmp_path: Path):
    prepare(tmp_path)
    # A logging interval is under way at two of three checkpoints.
    often = {"checkpoint.every_images": 16, "log.every_images": LOG, "dropout": 0.1}
    often |= {"log.samples_every_images": 0}
    run = config(tmp_path, total_images=8 * ITERATIONS, **often)
    whole = config(tmp_path, total_images=8 * ITERATIONS, run_dir=tmp_path / "whole", **often)
    assert live(whole) == "finished"

    dice = random.Random(0)
    for number in range(KILLS):
        moment = (a_save, some_time, some_iterations)[number % 3](Path(run.run_dir), dice)
        assert live(run, moment, victim=dice.randrange(2)) == "killed", number
        if moment.file is not None:
            assert list((Path(run.run_dir) / "checkpoints").glob(".*.partial"))
    assert live(run) == "finished"
    assert same_weights(Path(run.run_dir) / "generator", Path(whole.run_dir) / "generator")
    assert losses(Path(run.run_dir)) == losses(Path(whole.run_dir))


class Moment(NamedTuple):
    """When a rank is killed."""

    has_come: Callable[[], bool] = lambda: False
    file: int | None = None  # of its checkpoints, counted from its start: before that is written


NEVER = Moment()


def a_save(run: Path, dice: random.Random) -> Moment:
    """While a checkpoint is being written: the first, or the second."""
    return Moment(file=dice.randrange(2 * FILES))


def some_time(run: Path, dice: random.Random) -> Moment:
    """While ranks start, meet or resume; at the latest when they have logged something."""
    moment, logged = time.monotonic() + dice.uniform(0, 3), intervals(run, 1)
    return Moment(lambda: time.monotonic() > moment or logged())


def some_iterations(run: Path, dice: random.Random) -> Moment:
    """Between iterations or within one, far from checkpoints or near."""
    return Moment(intervals(run, dice.randrange(1, 4)))


def intervals(run: Path, wanted: int) -> Callable[[], bool]:
    """Whether as many logging intervals have ended since the newest checkpoint."""
    metrics = run / "metrics.jsonl"
    seen = max((int(p.name) for p in (run / "checkpoints").glob("0*")), default=0)
    told = LOG * (seen // LOG + wanted)
    return lambda: metrics.exists() and f'"images_seen": {told},' in metrics.read_text()


def live(run: RunConfig, moment: Moment = NEVER, victim: int = 0) -> str:
    """Two ranks train until the moment at which `victim` dies: "killed", or they "finished"."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    processes = [
        context.Process(
            target=_life,
            args=(rank, port, run, moment.file if rank == victim else None),
            daemon=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    while any(p.is_alive() for p in processes) and not moment.has_come():
        time.sleep(0.001)
    killed = any(p.is_alive() for p in processes) or processes[victim].exitcode == -signal.SIGKILL
    if killed:
        processes[victim].kill()
        # The survivor notices by itself, unless the two had not met yet: then the launcher's
        # SIGTERM ends it.
        processes[1 - victim].join(2)
        processes[1 - victim].terminate()
    for process in processes:
        process.join(PATIENCE)
        assert not process.is_alive(), "a rank hangs after the death of another"
    if killed:
        return "killed"
    assert [p.exitcode for p in processes] == [0, 0]
    return "finished"


def _life(rank: int, port: int, run: RunConfig, dies_before: int | None) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in place.items()}})
    torch.set_num_threads(1)
    common_end.POLL_SECONDS = 0.02  # survivors notice sooner
    files, write = count(), writer.write_tensors

    def write_or_die(*given):
        if next(files) == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*given)

    writer.write_tensors = write_or_die
    with joined_ranks() as here:
        train(run, here)


# --- the same run -------------------------------------------------------------------------


ON_CPU = {"device": "cpu"}
OFFLOADED = {
    "2_offload": {"stage": 2, "offload_optimizer": ON_CPU},
    "3_offload": {"stage": 3, "offload_optimizer": ON_CPU, "offload_param": ON_CPU},
}


def test_a_resumed_run_is_the_same_run_at_every_stage(tmp_path: Path):
    prepare(tmp_path)
    for name, zero in OFFLOADED.items():
        json_file = tmp_path / f"stage{name}.json"
        json_file.write_text(json.dumps({"zero_optimization": zero}))
    run_ranks(2, _resumed, tmp_path)


def _resumed(rank: int, folder: Path) -> None:
    for stage in ("0", "1", "2", "3", *OFFLOADED):
        same = {
            "deepspeed": folder / f"stage{stage}.json",
            "dropout": 0.1,
            "objective.warm_up.generator_images": 8,  # its stream is behind the other one's
        }
        whole, parts = folder / f"whole{stage}", folder / f"parts{stage}"
        train(config(folder, run_dir=whole, **same), joined())
        for total in (16, 32):
            train(config(folder, run_dir=parts, total_images=total, **same), joined())
        dist.barrier()  # rank 0 writes
        assert same_weights(whole / "generator", parts / "generator"), stage
        assert losses(whole) == losses(parts)
        if stage in OFFLOADED:
            assert same_weights(whole / "generator", folder / f"whole{stage[0]}" / "generator")
    with pytest.raises(TrainingStateError, match="seed: 0 -> 1"):
        train(config(folder, run_dir=folder / "parts2", seed=1), joined())
    with pytest.raises(TrainingStateError, match="resume is never"):
        train(config(folder, run_dir=folder / "parts2", resume="never"), joined())
    assert load_config(folder / "parts2" / "config.yaml").seed == 0  # refused: nothing changed
    older = folder / "parts2" / "checkpoints" / "000000000016"
    with pytest.raises(TrainingStateError, match="000000000032 is newer"):
        train(config(folder, run_dir=folder / "parts2", resume=older), joined())
    branch = {"run_dir": folder / "branch", "resume": older}
    same["deepspeed"] = folder / "stage2.json"
    train(config(folder, **same, **branch), joined())
    dist.barrier()
    assert same_weights(folder / "branch" / "generator", folder / "whole2" / "generator")


def test_digits_on_2_1_2_ranks_at_zero_1_3_2_have_the_losses_of_one_run(tmp_path: Path):
    write_digit_shards(tmp_path / "shards", TEACHER)
    for stage in (1, 2, 3):
        write_deepspeed_json(tmp_path, stage)
    run_ranks(2, _digits, tmp_path, "whole", 1, 768)
    for world_size, stage, total in ((2, 1, 256), (1, 3, 512), (2, 2, 768)):
        run_ranks(world_size, _digits, tmp_path, "moved", stage, total)
    whole, moved = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert [r["images_seen"] for r in moved] == list(range(64, 769, 64))
    for ours, theirs in zip(moved, whole, strict=True):
        for name in ("fake_score", "discriminator", "generator_sid", "generator_gan"):
            key = f"loss/{name}"
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (ours["images_seen"], key)


def _digits(rank: int, folder: Path, name: str, stage: int, total: int) -> None:
    overrides = {
        "run_dir": folder / name,
        "data": folder / "shards",
        "teacher": TEACHER,
        "deepspeed": folder / f"stage{stage}.json",
        "total_images": total,
        "learning_rate.ramp_down_images": 0,
        "log.every_images": 64,
        "log.samples_every_images": 0,
        "dropout": 0.1,
    }
    train(load_config("digits", [f"{k}={v}" for k, v in overrides.items()]), joined())


# --- damage and refusals ------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two ranks: checkpoints at 16 and 32 images."""
    folder = tmp_path_factory.mktemp("finished")
    prepare(folder)
    run_ranks(2, _finish, folder)
    return folder


def _finish(rank: int, folder: Path) -> None:
    # A checkpoint that is written behind may be complete only after the last record.
    train(config(folder, checkpoint__async_save=False), joined())


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to harm."""
    subprocess.run(["cp", "-a", f"{finished}/.", str(tmp_path)], check=True)
    return tmp_path


def go_on(folder: Path, **overrides: object) -> tuple[int, str]:
    """Starts the run again, on one rank; returns exit status and output."""
    words = ["--config", folder / "run.yaml", *settings(folder, **overrides)]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as a launcher says
    done = python("-m", "sid_scale.train", *words, **place)
    return done.returncode, done.stdout + done.stderr


PART = "fake_score-exp_avg_sq-00001-of-00002.safetensors"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda part: part.unlink(), f"{PART} (of rank 1 of 2) is missing"),
        (lambda part: part.write_bytes(part.read_bytes()[:-9]), f"{PART} (of rank 1 of 2) has"),
        (
            lambda part: flip_last_bit(part),
            f"{PART} (of rank 1 of 2) has another checksum than when it was written",
        ),
        (lambda part: part.with_name("manifest.json").unlink(), "it has no manifest.json"),
        (lambda part: part.with_name("manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda part: part.with_name("state.json").write_text("{}"), "state.json has 2 bytes"),
    ],
    ids=["missing", "truncated", "flipped", "purged", "manifest", "state"],
)
def test_a_damaged_newest_is_named_and_the_one_before_is_taken(run: Path, harm, message: str):
    checkpoints = run / "run" / "checkpoints"
    harm(checkpoints / "000000000032" / PART)
    status, output = go_on(run, total_images=40)
    assert status == 0, output
    assert f"checkpoint {checkpoints}/000000000032 is damaged: " in output
    assert message in output
    assert "set aside as 000000000032.damaged" in output
    assert f"going on from {checkpoints}/000000000016" in output
    assert "by 2 ranks at ZeRO 2" in output
    assert (checkpoints / "latest").resolve().name == "000000000040"
    assert [r["images_seen"] for r in records(run / "run")] == [8, 16, 24, 32, 40]


@pytest.mark.faults
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run: Path):
    asked = run / "run" / "checkpoints" / "000000000016"
    (asked / PART).unlink()
    status, output = go_on(run, resume=asked, run_dir=run / "branch")
    assert status == 1
    assert f"error: checkpoint {asked} is damaged: {PART} (of rank 1 of 2) is missing" in output
    assert "Traceback" not in output


@pytest.mark.faults
@pytest.mark.parametrize("asked", ["atuo", "run/checkpoints"])
def test_what_is_no_checkpoint_is_not_resumed_from(run: Path, asked: str):
    status, output = go_on(run, resume=run / asked if "/" in asked else asked)
    assert status == 1
    assert "neither auto, never nor a checkpoint's folder" in output
    assert "Traceback" not in output


@pytest.mark.faults
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / PART).unlink(), "no sound checkpoint is left"),
        (lambda p: set_version(p / "manifest.json"), "has format version 99; this program reads 3"),
    ],
    ids=["all damaged", "of another version"],
)
def test_a_run_never_starts_anew_over_its_checkpoints(run: Path, harm, message: str):
    told = records(run / "run")
    for checkpoint in (run / "run" / "checkpoints").glob("0*"):
        harm(checkpoint)
    names = sorted(p.name for p in (run / "run" / "checkpoints").iterdir())
    status, output = go_on(run, total_images=40)
    assert status == 1
    assert message in output
    assert "Traceback" not in output
    assert sorted(p.name for p in (run / "run" / "checkpoints").iterdir()) == names
    assert records(run / "run") == told


def set_version(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))


@pytest.mark.faults
def test_another_run_is_refused_with_what_differs(run: Path):
    save_network(run / "other", tiny_folder(7))
    write_data(run / "more", samples=48)
    status, output = go_on(run, teacher=run / "other", data=run / "more", method="sid", steps=2)
    assert status == 1
    assert "is of another run:" in output
    for line in ("data_shape.samples: 40 -> 48", "method: sida -> sid", "steps: 1 -> 2"):
        assert f"\n    {line}\n" in output
    assert "\n    teacher_sha256: " in output
    assert "Traceback" not in output


@pytest.mark.faults
def test_what_may_change_is_told_and_taken(run: Path):
    status, output = go_on(run, total_images=40, learning_rate__generator=1e-5)
    assert status == 0, output
    assert "changed since the checkpoint: learning_rate.generator: " in output
    assert records(run / "run")[-1]["learning_rate/generator"] == 1e-5


def test_a_larger_micro_batch_goes_on_when_the_adversarial_groups_stay(run: Path):
    """The checkpoint's micro-batch of 4 was the group."""
    checkpoint = run / "run" / "checkpoints" / "000000000032"
    place = {"resume": checkpoint, "total_images": 48}
    as_before, larger = (run / name for name in ("as_before", "larger"))
    status, output = go_on(run, run_dir=as_before, **place)
    assert status == 0, output
    groups = {"micro_batch": 8, "objective.adversarial_group": 4}
    status, output = go_on(run, run_dir=larger, **place, **groups)
    assert status == 0, output
    assert "changed since the checkpoint: micro_batch: 4 -> 8" in output
    for ours, theirs in zip(losses(larger), losses(as_before), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.faults
@pytest.mark.parametrize("group", ["null", "2"])
def test_other_adversarial_groups_are_another_run(run: Path, group: str):
    changed = {"micro_batch": 8, "objective.adversarial_group": group}
    status, output = go_on(run, total_images=40, **changed)
    assert status == 1
    assert f"\n    in_effect.adversarial_group: 4 -> {'2' if group == '2' else '8'}\n" in output
    assert "Traceback" not in output


@pytest.mark.faults
def test_a_split_that_cannot_keep_the_micro_batch_names_those_that_can(run: Path):
    with pytest.raises(ConfigError, match="nearest numbers of devices: 2, 4"):
        config(run, batch_size=32, micro_batch=8).accumulation(3)


def test_what_a_checkpoint_cost_is_logged(finished: Path):
    [told] = [r for r in records(finished / "run") if "checkpoint/pause_seconds" in r]
    assert told["images_seen"] > 16
    for figure in ("pause_seconds", "write_seconds", "gigabytes"):
        assert told[f"checkpoint/{figure}"] > 0
