"""Whole runs of GDD and GDD-I on ranks: interrupted, moved, refused, consolidated, published."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sid_scale.cli import main
from sid_scale.demo.prepare import CLASSIFIER, TEACHER, write_digit_shards
from sid_scale.distill.build import Run
from sid_scale.distill.evaluation import OpenEvaluation, no_evaluation
from sid_scale.distill.loop import train
from sid_scale.errors import SidScaleError
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.hashing import sha256_file
from sid_scale.methods.gdd import DISCRIMINATOR
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from sid_scale.zero.saved import TrainingStateError
from tests.distill.test_resume import assert_same_run, losses, records
from tests.networks.edm.published import DDPMPP, random_state
from tests.ranks import joined, run_ranks
from tests.tiny import ARCHITECTURE, config, prepare, tiny_folder, write_deepspeed_json

pytestmark = pytest.mark.distributed

TOTAL = 40  # images, of 5 iterations
# As the published teachers, it takes augmentation labels.
EDM_TEACHER = replace(DDPMPP, model_channels=32, dropout=0.0)
DIGITS = {"objective.feature_networks.digits": CLASSIFIER}
SMALL = {f"objective.discriminator.{k}": 8 for k in ("width", "projection_width", "embedding")}


class Case(NamedTuple):
    """A run, and where it is interrupted."""

    stage: int
    stop: int  # images; R1 has been due before it, or not yet
    settings: dict[str, Any]


CASES = {
    "pixels": Case(
        2, 16, {"method": "gdd", **DIGITS, "objective.teacher_sigma": 0.3, "dropout": 0.1}
    ),
    "edm": Case(3, 24, {"method": "gdd_i", "teacher": "edm", **DIGITS, "steps": 2}),
    "decoded": Case(3, 16, {"method": "gdd", **DIGITS, "objective.decoded_crop": 4}),
    "latents": Case(2, 24, {"method": "gdd_i", "objective.teacher_sigma": 0.3}),
}


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    stage, stop, of_case = CASES[name]
    given = {"warm_up": False, **SMALL, **of_case}
    given |= {"objective.r1_interval": 3 if stop == 16 else 2, "deepspeed": f"stage{stage}.json"}
    given |= {"total_images": TOTAL, "checkpoint.every_images": stop, "batch_size": 8}
    given |= {"log.samples_every_images": 0, "checkpoint.keep": 3}
    if name in ("decoded", "latents"):
        given |= {"teacher": TEACHER, "data": "digits"}
    for key in ("teacher", "data", "deepspeed"):
        if key in given:
            given[key] = folder / given[key]
    return given | {"run_dir": folder / name, **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that ended without an interruption, each beside `NAME.parts`, which did
    not."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    save_network(folder / "edm", NetworkFolder(EDM_TEACHER, random_state(EDM_TEACHER)))
    write_digit_shards(folder / "digits", TEACHER)
    nothing_persists = {"stage": 3, "stage3_param_persistence_threshold": 0}
    write_deepspeed_json(folder, 3, zero_optimization=nothing_persists)
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        built: list[Run] = []
        train(config(folder, **settings(folder, name)), joined(), open_evaluation=keeping(built))
        _assert_the_same_on_all_ranks(built[0])
        for total in (case.stop, TOTAL):
            parts = settings(folder, name, run_dir=folder / f"{name}.parts", total_images=total)
            train(config(folder, **parts), joined())


def keeping(built: list[Run]) -> OpenEvaluation:
    def open_evaluation(run: Run) -> Any:
        _assert_the_same_on_all_ranks(run)
        built.append(run)
        return no_evaluation(run)

    return open_evaluation


def _assert_the_same_on_all_ranks(run: Run) -> None:
    """A checkpoint holds the first rank's buffers. Statistics of batch normalisation differ from
    rank to rank, and are never read."""
    for name, buffer in run.networks[DISCRIMINATOR].module.named_buffers():
        if name.endswith(("_u", "_v")):
            first = buffer.clone()
            dist.broadcast(first, 0)
            assert torch.equal(buffer, first), name
    for network in run.fixed.values():
        for tensor in (*network.parameters(), *network.buffers()):
            first = tensor.clone()
            dist.broadcast(first, 0)
            assert torch.equal(tensor, first)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_is_the_same_run(runs: Path, name: str):
    assert_same_run(runs / name, runs / f"{name}.parts")


@pytest.mark.parametrize("name", CASES)
def test_what_is_logged(runs: Path, name: str):
    told = records(runs / name)
    interval = settings(runs, name)["objective.r1_interval"]
    for record in told:
        assert {"loss/generator", "loss/discriminator", "logits/real"} <= record.keys()
        iteration = record["images_seen"] // 8 - 1
        has_r1 = iteration > 0 and iteration % interval == 0
        assert ({"loss/r1", "grad_norm/r1"} <= record.keys()) == has_r1
    assert len(told) == TOTAL // 8


def test_it_goes_on_on_another_number_of_ranks(runs: Path, tmp_path: Path):
    """The micro-batches are the same, and so is what batch normalisation makes of them. A rank that
    takes two of them makes twice the steps of the power iteration."""
    run_ranks(1, _moved, runs, tmp_path)
    for ours, theirs in zip(losses(tmp_path / "run"), losses(runs / "pixels")[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)


def _moved(rank: int, folder: Path, out: Path) -> None:
    first = folder / "pixels" / "checkpoints" / "000000000016"
    train(config(folder, **settings(folder, "pixels", run_dir=out / "run", resume=first)), joined())


@pytest.mark.faults
def test_another_discriminator_is_another_run(runs: Path, tmp_path: Path):
    run_ranks(1, _others, runs, tmp_path)


def _others(rank: int, folder: Path, out: Path) -> None:
    other = out / "other.safetensors"
    save_file({k: v + 1 for k, v in load_file(CLASSIFIER).items()}, other)
    given = {"run_dir": out / "run", "resume": folder / "pixels" / "checkpoints" / "000000000016"}
    for changed, message in (
        ({"objective.feature_networks.digits": other}, r"files_sha256\.digits: \w+ -> \w+"),
        ({"objective.discriminator.width": 16}, r"in_effect\.discriminator\.width: 8 -> 16"),
        ({"objective.teacher_sigma": "null"}, r"in_effect\.teacher_features: True -> False"),
        ({"micro_batch": 2}, r"in_effect\.micro_batch: 4 -> 2"),
    ):
        with pytest.raises(TrainingStateError, match=rf"is of another run:(?s:.*){message}"):
            train(config(folder, **settings(folder, "pixels", **{**given, **changed})), joined())
    assert not (out / "run").exists()


@pytest.mark.parametrize("name", ["edm", "decoded"])
def test_from_the_checkpoint_to_measured_images(runs: Path, name: str, tmp_path: Path):
    checkpoint, out = runs / name / "checkpoints" / "latest", tmp_path / "out"
    assert main(["consolidate", str(checkpoint), str(out), "--role", "all"]) == 0
    assert {folder.name for folder in out.iterdir()} == {"generator", "generator_ema"}
    published = load_network(runs / name / "generator")
    average = load_network(out / "generator_ema")
    assert average.architecture == published.architecture
    assert all(torch.equal(published.state[n], value) for n, value in average.state.items())
    images = OneStepGenerator.from_pretrained(runs / name / "generator").generate([0, 1], [2, 3])
    assert images.dtype == torch.uint8
    assert len(images) == 2


def test_an_edm_generator_is_the_published_one(runs: Path):
    """Its preconditioning is shifted, it takes no augmentation labels, and what GDD-I freezes is
    the teacher's."""
    generator, teacher = (load_network(runs / name) for name in ("edm/generator", "edm"))
    assert generator.architecture == replace(EDM_TEACHER, augment_dim=0, sigma_min=0.002)
    assert teacher.state.keys() - generator.state.keys() == {"model.map_augment.weight"}
    frozen = [n for n in generator.state if re.search(r"block\d+\.(conv0|conv1|proj)\.", n)]
    assert frozen
    assert all(torch.equal(generator.state[n], teacher.state[n]) for n in frozen)
    moved = [n for n in generator.state if not torch.equal(generator.state[n], teacher.state[n])]
    assert len(moved) > len(generator.state) / 4


def test_the_card_says_what_looked_at_the_images(runs: Path):
    card = (runs / "edm" / "generator" / "README.md").read_text()
    for told in (
        "| method | GDD-I: GDD that leaves most of the teacher's convolutions as they are |",
        f"| SHA-256 of the weights of feature network digits | {sha256_file(CLASSIFIER)} |",
        "| weights left as they were | convolutions |",
        "have licences of their own: digits.",
        "- GDD: https://arxiv.org/abs/2405.20750",
    ):
        assert told in card
    told = load_network(runs / "edm" / "generator").provenance["settings"]["objective"]
    assert told["feature_networks"] == {"digits": CLASSIFIER.name}  # folders are this machine's
    assert "noise level at which the teacher's encoder looked | 0.3 |" in (
        (runs / "latents" / "generator" / "README.md").read_text()
    )


@pytest.mark.faults
def test_what_cannot_be_used_is_told_before_the_first_iteration(runs: Path, tmp_path: Path):
    shutil.copytree(TEACHER, tmp_path / "latent teacher")  # its codec names a VAE beside it
    tiny = replace(ARCHITECTURE, img_resolution=2)
    save_network(tmp_path / "tiny", tiny_folder(architecture=tiny))
    run_ranks(1, _refused, runs, tmp_path)


def _refused(rank: int, folder: Path, out: Path) -> None:
    digits = "objective.feature_networks.digits"
    for name, changed, message in (
        ("pixels", {digits: out / "gone"}, r"feature network digits: .*/gone: no such file\. A"),
        ("pixels", {digits: out}, r"feature network digits: .*: not a file\. A"),
        ("pixels", {"teacher": out / "tiny"}, r"no encoder .* maps of 4 pixels or more: set"),
        ("decoded", {"teacher": out / "latent teacher"}, r"no config\.json there\. The VAE is"),
    ):
        given = settings(folder, name, run_dir=out / "run", **changed)
        with pytest.raises(SidScaleError, match=message):
            train(config(folder, **given), joined())
    assert not (out / "run").exists()
