"""Evaluation while training: figures appear, the best is kept, and training does not notice."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from huggingface_hub import ModelCard

from sid_scale.codecs import CodecError
from sid_scale.config.run import ConfigError, load_config
from sid_scale.distill import loop
from sid_scale.evaluate import training as training_evaluation
from sid_scale.evaluate.detectors import DetectorError
from sid_scale.evaluate.encoders import EncoderError
from sid_scale.evaluate.features import MetricError, kind_of
from sid_scale.evaluate.references.files import ReferenceFile, ReferenceFileError, write_reference
from sid_scale.hashing import sha256_file
from sid_scale.jobs.stop import stop_requests
from sid_scale.networks.folder import load_network, save_network
from sid_scale.zero.writer import CheckpointWriter
from tests.evaluate.detectors import write_inception
from tests.evaluate.evaluations import read, work
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, settings

pytestmark = pytest.mark.distributed

train = partial(loop.train, open_evaluation=training_evaluation.open_evaluation)
METRICS = "fd_latents,fd_pixels,fid,kd_latents,mind,density"
NUM = 13  # no multiple of anything: ranks sample in vain to stay in step


def write_real(path: Path, **sizes: int) -> Path:
    """A reference with random statistics and features."""
    rng = np.random.default_rng(0)
    moments, kept = {}, {}
    for metric, size in sizes.items():
        features = rng.normal(size=(3 * size, size))
        moments[metric] = (features.mean(axis=0), np.cov(features, rowvar=False))
        kept[kind_of(metric)] = features[:20].astype(np.float32)
    write_reference(path, ReferenceFile(moments, kept))
    return path


def evaluated(folder: Path, **overrides: object) -> dict[str, object]:
    return {
        "evaluation.every_images": 8,
        "evaluation.num": NUM,
        "evaluation.metrics": METRICS,
        "evaluation.reference": folder / "real.npz",
        "evaluation.inception": folder / "inception.pt",
        **overrides,
    }


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training(run: Path) -> list[dict]:
    """What the records say of the training's mathematics."""
    told = ("images_seen", "skipped_updates", "loss/", "logits/", "grad_norm/", "sid_loss")
    return [{k: v for k, v in r.items() if k.startswith(told)} for r in records(run)]


def figures(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k.startswith("evaluation/")} for r in records(run)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks at ZeRO 2 and 3, evaluated and not."""
    place = prepare(tmp_path_factory.mktemp("training"))
    write_inception(place / "inception.pt")
    write_real(place / "real.npz", fd_latents=192, fd_pixels=64, fid=24)
    run_ranks(2, _train, place)
    return place


def _train(rank: int, place: Path) -> None:
    for stage in (2, 3):
        same = {"deepspeed": place / f"stage{stage}.json", "dropout": 0.1}
        train(config(place, run_dir=place / f"plain{stage}", **same), joined())
        with_it = evaluated(place, **same)
        train(config(place, run_dir=place / f"evaluated{stage}", **with_it), joined())
    for total in (16, 32):
        train(config(place, run_dir=place / "resumed", total_images=total, **with_it), joined())
    dist.barrier()  # rank 0 writes


@pytest.mark.parametrize("stage", [2, 3])
def test_training_is_the_same_to_the_last_bit(place: Path, stage: int):
    assert training(place / f"evaluated{stage}") == training(place / f"plain{stage}")
    ours, theirs = (
        load_network(place / f"{k}{stage}" / "generator") for k in ("evaluated", "plain")
    )
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in ours.state)


@pytest.mark.parametrize("stage", [2, 3])
def test_figures_stand_in_every_record_that_is_due(place: Path, stage: int):
    told = figures(place / f"evaluated{stage}")
    assert len(told) == 4
    for values in told:
        assert values.keys() == {f"evaluation/{metric}" for metric in METRICS.split(",")}
        assert all(np.isfinite(v) for v in values.values())
    assert not (place / f"evaluated{stage}" / ".evaluation").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_generator_is_kept_and_measures_the_same_afterwards(
    place: Path, tmp_path: Path, stage: int
):
    run = place / f"evaluated{stage}"
    values = {r["images_seen"]: r["evaluation/fd_latents"] for r in records(run)}
    best = min(values, key=values.__getitem__)
    assert load_network(run / "best_generator").provenance["images_seen"] == best
    with_checkpoint = {seen: values[seen] for seen in (16, 32)}
    best_of_these = min(with_checkpoint, key=with_checkpoint.__getitem__)
    assert int((run / "checkpoints" / "best").resolve().name) == best_of_these
    run_ranks(1, work, "run", [str(word) for word in again(place, run, tmp_path)])
    told = next(r for r in records(run) if r["images_seen"] == best)
    for metric in ("fd_latents", "fd_pixels", "fid"):
        assert read(tmp_path)[metric] == pytest.approx(told[f"evaluation/{metric}"], rel=1e-4)


def test_the_card_of_a_finished_run_has_its_figures_and_how_they_were_measured(place: Path):
    run = place / "evaluated2"
    card, last = ModelCard.load(run / "generator" / "README.md"), figures(run)[-1]
    written = {result.metric_type: result for result in card.data.eval_results}
    assert {f"evaluation/{name}": r.metric_value for name, r in written.items()} == last
    assert written["fid"].metric_args == {
        "images": NUM,
        "first_seed": 0,
        "labels": "uniform",
        "nfe": 1,
        "file": "metrics.jsonl",
        "reference_sha256": sha256_file(place / "real.npz"),
    }
    text = (place / "plain2" / "generator" / "README.md").read_text()
    assert "Nothing, when this card was written" in text


def test_classes_are_uniform_or_those_of_training(tmp_path: Path):
    prepare(tmp_path)
    write_real(tmp_path / "real.npz", fd_latents=192)
    (tmp_path / "labels.txt").write_text("2")
    run_ranks(1, _labels, tmp_path)


def _labels(rank: int, folder: Path) -> None:
    labels = folder / "labels.txt"
    drawn = {"uniform": "uniform", "training": labels}  # by what `evaluate run` calls the same
    for name, same in drawn.items():
        run, only = folder / name, {"evaluation.metrics": "fd_latents", "evaluation.labels": name}
        short = {"run_dir": run, "total_images": 8, "labels": labels}
        train(config(folder, **evaluated(folder, **only), **short), joined())
        words = ["--generator", run / "best_generator", "--metrics", "fd_latents", "--num", NUM]
        words += ["--reference", folder / "real.npz", "--labels", same, "--out", run / "again"]
        work(rank, "run", [str(word) for word in words])
        told = records(run)[-1]["evaluation/fd_latents"]
        assert read(run / "again")["fd_latents"] == pytest.approx(told, rel=1e-4)
    both = [records(folder / name)[-1]["evaluation/fd_latents"] for name in drawn]
    assert both[0] != pytest.approx(both[1], rel=1e-3)


def again(place: Path, run: Path, out: Path) -> list[object]:
    return [
        *("--generator", run / "best_generator", "--metrics", METRICS),
        *("--reference", place / "real.npz", "--inception", place / "inception.pt"),
        *("--num", NUM, "--out", out),
    ]


def test_a_resumed_run_remembers_what_was_best(place: Path):
    assert figures(place / "resumed") == figures(place / "evaluated3")
    whole, resumed = (place / name / "best_generator" for name in ("evaluated3", "resumed"))
    assert (
        load_network(resumed).provenance["images_seen"]
        == load_network(whole).provenance["images_seen"]
    )


def test_an_evaluation_that_is_not_worth_more_replaces_nothing(tmp_path: Path):
    prepare(tmp_path)
    write_real(tmp_path / "real.npz", fd_latents=192)
    run_ranks(1, _nothing_better, tmp_path)


def _nothing_better(rank: int, folder: Path) -> None:
    run = folder / "run"
    only = evaluated(folder, **{"evaluation.metrics": "fd_latents"})
    train(config(folder, total_images=16, **only), joined())
    lines = [r | {"evaluation/fd_latents": 1e-9} for r in records(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = (run / "best_generator" / "model.safetensors").stat()
    train(config(folder, total_images=32, **only), joined())
    after = (run / "best_generator" / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (run / "checkpoints" / "best").resolve().name == "000000000016"


def test_the_checkpoint_of_the_best_moment_survives_newer_ones(tmp_path: Path):
    prepare(tmp_path)
    write_real(tmp_path / "real.npz", fd_latents=192)
    run_ranks(1, _best_survives, tmp_path)


def _best_survives(rank: int, folder: Path) -> None:
    """Each checkpoint becomes complete only when the next begins, as with slow disks."""
    measured = iter([3.0, 1.0, 2.0, 4.0])
    training_evaluation.compute_metrics = lambda *_: {"fd_latents": next(measured)}
    CheckpointWriter.is_writing = property(lambda _: True)
    often = {"checkpoint.every_images": 8, "checkpoint.keep": 1}
    train(config(folder, **evaluated(folder, **{"evaluation.metrics": "fd_latents", **often})),
          joined())  # fmt: skip
    checkpoints = folder / "run" / "checkpoints"
    assert {p.name for p in checkpoints.glob("0*")} == {"000000000016", "000000000032"}
    assert (checkpoints / "best").resolve().name == "000000000016"


def test_figures_that_were_measured_otherwise_are_no_match(tmp_path: Path):
    """Of a run that is resumed with another reference, then taken back to an earlier place."""

    def record(*seen: int) -> None:
        lines = [json.dumps({"images_seen": n, "evaluation/fid": 100 - n}) + "\n" for n in seen]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))

    def comparable(basis: str, images_seen: int) -> dict[int, float]:
        basis_ = {"references": {"fid": basis}}
        return training_evaluation.comparable_metrics(tmp_path, "fid", basis_, images_seen)

    assert comparable("a", 0) == {}
    record(8, 16)
    assert comparable("a", 16) == {8: 92, 16: 84}
    assert comparable("b", 16) == {}
    record(8, 16, 24, 32)
    assert comparable("b", 32) == {24: 76, 32: 68}
    record(8)
    assert comparable("b", 8) == {}
    record(8, 16, 24)
    assert comparable("b", 24) == {16: 84, 24: 76}
    (tmp_path / "evaluation.json").write_text("damaged")
    assert comparable("b", 24) == {}


@pytest.mark.faults
def test_a_run_that_asks_for_an_evaluation_is_never_started_without(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _without, tmp_path)


def _without(rank: int, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.every_images: .* started without one"):
        loop.train(config(folder, **evaluated(folder)), joined())
    assert not (folder / "run").exists()


@pytest.mark.faults
def test_what_could_not_work_is_found_before_the_first_iteration(tmp_path: Path):
    prepare(tmp_path)
    write_inception(tmp_path / "inception.pt")
    write_real(tmp_path / "real.npz", fd_latents=192, fd_pixels=64)
    run_ranks(1, _could_not_work, tmp_path)


def _could_not_work(rank: int, folder: Path) -> None:
    def refused(error: type[Exception], match: str, **overrides: object) -> None:
        changed = {f"evaluation.{k}": v for k, v in overrides.items()}
        quiet = {"method": "sid", "data": "null", "log.samples_every_images": 0}
        with pytest.raises(error, match=match):
            train(config(folder, **{**evaluated(folder), **quiet, **changed}), joined())
        assert not (folder / "run").exists()

    write_real(folder / "whole.npz", fid=24)
    refused(DetectorError, r"inception-2015-12-05.pt.*evaluation.inception", inception="null")
    refused(DetectorError, "nowhere.pt: not there", inception=folder / "nowhere.pt")
    refused(ReferenceFileError, "fid needs a reference, and none has it")
    refused(ReferenceFileError, "cannot be read", reference=folder / "nowhere.npz")
    refused(MetricError, "no 'fd_pixel'; did you mean 'fd_pixels'", metrics="fd_pixel")
    refused(MetricError, "density: 5 generated images; it takes at least 6", metrics="density",
            num=5, reference=folder / "whole.npz")  # fmt: skip
    refused(EncoderError, "encoder test_vit, .*nowhere: ", metrics="fd_test_vit",
            encoders=f"{{test_vit: {folder / 'nowhere'}}}")  # fmt: skip
    refused(MetricError, "evaluation.best_by: fid is none", metrics="fd_latents", best_by="fid")
    write_real(folder / "other.npz", fd_latents=64)
    refused(ReferenceFileError, "64 features, here are 192", metrics="fd_latents",
            reference=folder / "other.npz")  # fmt: skip
    teacher = load_network(folder / "teacher")
    teacher.codec.update(kind="vae", vae=str(folder / "nowhere"), scale=[1] * 3, bias=[0] * 3)
    save_network(folder / "teacher", teacher)
    refused(CodecError, "nowhere", metrics="fd_pixels")


def test_metrics_and_references_are_lists_or_typed_with_commas(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "evaluation: {metrics: [fid, is], reference: [a.pkl, b.npz]}"
    )
    listed = load_config(tmp_path / "run.yaml", settings(tmp_path)).evaluation
    typed = load_config(
        tmp_path / "run.yaml", settings(tmp_path, **{"evaluation.metrics": "fid, is"})
    ).evaluation
    assert listed == typed
    assert listed.metrics == ("fid", "is")
    with pytest.raises(ConfigError, match=r"evaluation.metrics: expected a text, got 3"):
        load_config(tmp_path / "run.yaml", settings(tmp_path, **{"evaluation.metrics": "[3]"}))


def test_a_generator_that_makes_no_numbers_is_told_and_never_the_best(tmp_path: Path):
    prepare(tmp_path)
    write_real(tmp_path / "real.npz", fd_latents=192, fd_pixels=64)
    run_ranks(1, _no_numbers, tmp_path)


def _no_numbers(rank: int, folder: Path) -> None:
    broken = load_network(folder / "teacher")
    broken.state["unet.out_conv.weight"].fill_(float("nan"))
    save_network(folder / "broken", broken)
    both = {"evaluation.metrics": "fd_latents,fd_pixels", "teacher": folder / "broken"}
    train(config(folder, total_images=16, **evaluated(folder, **both)), joined())
    for metric in ("fd_latents", "fd_pixels"):  # uint8 pixels know no NaN
        assert [r[f"evaluation/{metric}"] for r in records(folder / "run")] == [None, None]
    assert not (folder / "run" / "best_generator").exists()
    given = ["--generator", folder / "run" / "generator", "--reference", folder / "real.npz"]
    given += ["--metrics", "fd_latents", "--num", 8, "--out", folder / "out"]
    with pytest.raises(MetricError, match="not finite"):
        work(rank, "run", [str(word) for word in given])


@pytest.mark.faults
def test_a_run_that_is_to_stop_gives_its_evaluation_up(tmp_path: Path):
    prepare(tmp_path)
    write_real(tmp_path / "real.npz", fd_latents=192)
    run_ranks(1, _gives_up, tmp_path)


def _gives_up(rank: int, folder: Path) -> None:
    """SIGTERM arrives while samples are made: a checkpoint must not wait for 10**7 of them."""
    latents = training_evaluation.AverageSampler.latents

    def asked_to_stop(self, classes, seeds):
        os.kill(os.getpid(), signal.SIGTERM)
        training_evaluation.AverageSampler.latents = latents
        return latents(self, classes, seeds)

    training_evaluation.AverageSampler.latents = asked_to_stop
    only = evaluated(folder, **{"evaluation.metrics": "fd_latents", "evaluation.num": 10**7})
    with stop_requests(600) as stop:
        train(config(folder, **only), joined(), stop)
    run = folder / "run"
    assert [p.name for p in (run / "checkpoints").glob("0*")] == ["000000000008"]
    assert figures(run) == [{}]
    assert not (run / ".evaluation").exists()
    once = {**only, "evaluation.num": NUM, "total_images": 16}
    train(config(folder, **once), joined())
    assert records(run)[-1]["evaluation/fd_latents"] > 0
