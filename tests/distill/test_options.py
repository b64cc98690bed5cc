"""Whole runs with what came after SiDA: interrupted, on other ranks, refused, published."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sid_scale.config.parse import ConfigError
from sid_scale.demo.prepare import TEACHER
from sid_scale.distill.loop import train
from sid_scale.errors import SidScaleError
from sid_scale.hashing import sha256_file
from sid_scale.methods.sid import MethodError
from sid_scale.networks.folder import CheckpointError, NetworkFolder, load_network, save_network
from sid_scale.zero.saved import STATE, TrainingStateError
from tests.distill.test_resume import assert_same_run, records
from tests.networks.edm.published import DDPMPP, random_state
from tests.ranks import joined, run_ranks
from tests.tiny import ARCHITECTURE, config, prepare, tiny_folder

pytestmark = pytest.mark.distributed

TOTAL, STOP = 24, 8  # images, of 3 iterations
# Name -> ZeRO stage, settings. Weights by density ratios look at the whole batch.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "kl": (3, {"objective.gradient": "kl", "objective.fake_score_updates": 2}),
    "weighed": (2, {"objective.divergence": "forward_kl"}),
    "guided": (
        3,
        {
            "objective.gradient": "kl",
            "objective.divergence": "jeffreys",
            "objective.guidance": 1.5,
            "objective.guidance_fake_score": 1.2,
            "objective.guidance_sigma": "0.01,2",
        },
    ),
}


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    stage, given = CASES[name]
    if name == "guided":
        given = {**given, "objective.guide": folder / "unconditional"}
    return {
        "run_dir": folder / name,
        "deepspeed": folder / f"stage{stage}.json",
        "total_images": TOTAL,
        "checkpoint.every_images": STOP,
        "checkpoint.keep": 3,
        "log.samples_every_images": 0,
        # The discriminator of so small a network knows nothing: its logits are made to differ.
        "objective.loss_scale_discriminator": 1e4,
        "objective.adversarial_group": 2,
        **given,
        **more,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that ended without an interruption, each beside `NAME.parts`, which did
    not."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    lesser = dataclasses.replace(ARCHITECTURE, label_dim=0, model_channels=8, channels_per_head=8)
    save_network(folder / "unconditional", tiny_folder(5, lesser))
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    for name in CASES:
        train(config(folder, **settings(folder, name)), joined())
        for total in (STOP, TOTAL):
            parts = settings(folder, name, run_dir=folder / f"{name}.parts", total_images=total)
            train(config(folder, **parts), joined())


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_is_the_same_run(runs: Path, name: str):
    assert_same_run(runs / name, runs / f"{name}.parts")


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_and_micro_batches_change_nothing(runs: Path, tmp_path: Path, ranks: int):
    """Two ranks with a micro-batch of 4 are one rank with two of them, and two with two of 2."""
    run_ranks(ranks, _elsewhere, runs, tmp_path)
    for name in CASES:
        for ours, theirs in zip(records(tmp_path / name), records(runs / name), strict=True):
            for key in theirs:
                if key.startswith(("loss/", "density_ratio/", "grad_norm/")):
                    assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (name, key)


def _elsewhere(rank: int, folder: Path, out: Path) -> None:
    here = joined()
    for name in CASES:
        given = {"deepspeed": folder / "stage2.json", "micro_batch": 4 // here.world_size}
        train(config(folder, **settings(folder, name, run_dir=out / name, **given)), here)


def test_density_ratios_are_logged(runs: Path):
    for record in records(runs / "weighed"):
        ratios = {k: v for k, v in record.items() if k.startswith("density_ratio/")}
        low, mean, high = (ratios[f"density_ratio/{k}"] for k in ("min", "mean", "max"))
        assert 0.1 <= low < mean < high <= 20
        assert 0 < ratios["density_ratio/effective_share"] < 1
    assert not any(k.startswith("density_ratio/") for k in records(runs / "kl")[0])


def test_the_fake_score_learns_twice_for_each_update_of_the_generator(runs: Path):
    state = json.loads((runs / "kl" / "checkpoints" / "latest" / STATE).read_text())
    assert state["progress"]["positions"] == {"generator": TOTAL, "fake_score": 2 * TOTAL}


def test_a_generator_says_what_guided_its_teacher(runs: Path):
    weights = sha256_file(runs / "unconditional" / "model.safetensors")
    provenance = load_network(runs / "guided" / "generator").provenance
    assert provenance["guides_sha256"] == {"guide": weights}
    assert provenance["settings"]["objective"]["guide"] == "unconditional"
    card = (runs / "guided" / "generator" / "README.md").read_text()
    for told in (
        "| gradient of the generator's loss | that of the KL divergence |",
        "| divergence that weighs samples | jeffreys |",
        "| guidance of the teacher | 1.5 |",
        f"| SHA-256 of the weights of the guide | {weights} |",
        "- Autoguidance: https://arxiv.org/abs/2406.02507",
        "- Guidance in a limited interval: https://arxiv.org/abs/2404.07724",
        "- SiD-LSG: https://arxiv.org/abs/2406.01561",
    ):
        assert told in card


@pytest.mark.faults
def test_what_cannot_guide_is_told_before_the_first_iteration(runs: Path, tmp_path: Path):
    for name, differs in {"larger": {"img_resolution": 16}, "classes": {"label_dim": 7}}.items():
        architecture = dataclasses.replace(ARCHITECTURE, **differs)
        save_network(tmp_path / name, tiny_folder(architecture=architecture))
    save_network(tmp_path / "other guide", tiny_folder(6))
    for name, labels in {"pixels": 9, "untold": 0}.items():
        architecture = dataclasses.replace(DDPMPP, augment_dim=labels)
        save_network(tmp_path / name, NetworkFolder(architecture, random_state(architecture)))
    run_ranks(1, _refused, runs, tmp_path)


def _refused(rank: int, folder: Path, out: Path) -> None:
    for guide, error, message in (
        ("gone", CheckpointError, r"objective\.guide: .*gone: no config\.json there"),
        ("larger", SidScaleError, r"makes images \(3, 16, 16\), the teacher \(3, 8, 8\)"),
        ("classes", SidScaleError, "knows 7 classes, the teacher 4; a guide knows the same or"),
        (TEACHER, SidScaleError, r"makes images \(1, 8, 8\)"),
        (folder / "kl" / "generator", SidScaleError, "holds a generator, which guides nothing"),
    ):
        given = {"objective.guide": out / guide, "run_dir": out / "run"}
        with pytest.raises(error, match=message):
            train(config(folder, **settings(folder, "guided", **given)), joined())
    untold = {
        "teacher": out / "pixels",
        "objective.guide": out / "untold",
        "objective.augmentation": 0.12,
        "objective.logvar_weighting": "false",
        "run_dir": out / "run",
    }
    with pytest.raises(MethodError, match="untold takes 0 augmentation labels, not 9: set"):
        train(config(folder, **settings(folder, "guided", **untold)), joined())
    given = {"activations.guide": "64", "run_dir": out / "run"}
    with pytest.raises(ConfigError, match=r"activations\.guide: .* has no blocks of resolution 64"):
        train(config(folder, **settings(folder, "guided", **given)), joined())
    given = {"objective.guide": out / "other guide", "run_dir": folder / "guided"}
    with pytest.raises(TrainingStateError, match=r"guides_sha256\.guide: \w+ -> \w+"):
        train(config(folder, **settings(folder, "guided", **given)), joined())
    assert not (out / "run").exists()
