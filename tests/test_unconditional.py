"""Networks without classes work everywhere: training, sampling, generation, evaluation, cards."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from sid_scale.codecs import IdentityCodec
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.diffusion.heun import denoiser, heun_sample
from sid_scale.distill.loop import train
from sid_scale.generators.folder import GeneratorError
from sid_scale.networks.folder import load_network
from tests.evaluate.evaluations import evaluate, read
from tests.networks.edm2.published import published, settings_of, snapshot
from tests.networks.published import persistent, write
from tests.ranks import joined, run_ranks
from tests.tiny import ARCHITECTURE, config, prepare

pytestmark = pytest.mark.distributed
UNCONDITIONAL = dataclasses.replace(ARCHITECTURE, label_dim=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional teacher as EDM2 publishes it, and runs with data at ZeRO 2 and 3."""
    folder = prepare(tmp_path_factory.mktemp("unconditional"))
    torch.manual_seed(0)
    state = UNCONDITIONAL.build().state_dict()
    network = published(UNCONDITIONAL, state, **settings_of(UNCONDITIONAL))
    rgb = persistent("StandardRGBEncoder")
    pickled = write(folder / "edm2-img512-xs-uncond.pkl", snapshot(network, rgb))
    shutil.rmtree(folder / "teacher")
    assert main(["import", str(pickled), str(folder / "teacher")]) == 0
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    write_shards(
        folder / "plain",
        ((f"{i:03d}", images[i], 0) for i in range(40)),
        codec=IdentityCodec().describe(),
        dtype="uint8",
        num_classes=0,
        shard_samples=16,
    )
    run_ranks(2, _train, folder)
    return folder


def _train(rank: int, folder: Path) -> None:
    here = joined()
    for stage in (2, 3):
        # With classes or without: to an unconditional teacher they say nothing.
        data = folder / ("plain" if stage == 2 else "data")
        given = {"deepspeed": folder / f"stage{stage}.json", "data": data}
        train(config(folder, run_dir=folder / f"run{stage}", **given), here)
    sid = {"method": "sid", "data": "null", "total_images": 8}
    train(config(folder, run_dir=folder / "sid", **sid), here)


def test_training_moves_the_generator_and_draws_samples(place: Path):
    teacher = load_network(place / "teacher")
    for run in ("run2", "run3", "sid"):
        generator = load_network(place / run / "generator")
        assert generator.architecture == UNCONDITIONAL.headless()
        name = "unet.out_conv.weight"
        assert not torch.equal(generator.state[name], teacher.state[name])
        assert (place / run / "generator" / "samples.png").is_file()


def test_a_generator_makes_images_of_seeds_alone(place: Path):
    generator = OneStepGenerator.from_pretrained(place / "run2" / "generator")
    images = generator.generate(None, seeds=[0, 1])
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(generator.generate(None, [1])[0], images[1])
    with pytest.raises(GeneratorError, match="knows no classes"):
        generator.generate([0, 0], seeds=[0, 1])


def test_the_command_takes_no_classes(place: Path, tmp_path: Path, capsys):
    what = ["generate", "--generator", str(place / "run2" / "generator"), "--seeds", "3-5"]
    assert main([*what, "--classes", "0", "--out", str(tmp_path / "no")]) == 2
    assert "the generator knows no classes" in capsys.readouterr().err
    assert main([*what, "--out", str(tmp_path / "o"), "--grid", "--npz"]) == 0
    made = {path.name for path in (tmp_path / "o").glob("*.png")}
    assert made == {"grid.png", *(f"seed{n:06d}.png" for n in (3, 4, 5))}
    with np.load(tmp_path / "o" / "images.npz") as held:
        assert sorted(held.files) == ["arr_0", "seeds"]


def test_heun_samples_and_evaluation(place: Path, tmp_path: Path):
    network = load_network(place / "teacher").build()
    assert heun_sample(denoiser(network), torch.randn(2, 3, 8, 8), 4).isfinite().all()
    reference = tmp_path / "r.npz"
    evaluate("reference", "--data", place / "plain", "--metrics", "fd_pixels", "--out", reference)
    common = ["--metrics", "fd_pixels", "--reference", reference, "--num", 8]
    generator, teacher = place / "run2" / "generator", place / "teacher"
    evaluate("run", "--generator", generator, *common, "--out", tmp_path / "g")
    evaluate("teacher", "--teacher", teacher, "--steps", 3, *common, "--out", tmp_path / "t")
    for name in ("g", "t"):
        assert np.isfinite(read(tmp_path / name)["fd_pixels"])


def test_the_card_speaks_of_no_class(place: Path):
    card = (place / "run2" / "generator" / "README.md").read_text()
    assert "makes an image with" in card
    assert ".generate(None, seeds=" in card
    assert "--classes" not in card
    assert "- unconditional\n" in card
    assert "class-conditional" not in card


def test_the_report_shows_samples_without_classes(place: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    assert main(["report", str(place / "run2"), "--out", str(out), "--samples", "2"]) == 0
    assert "nearest" in out.read_text()


def test_memory_is_estimated(place: Path, capsys):
    settings = json.loads((place / "stage2.json").read_text())
    assert settings["zero_optimization"]["stage"] == 2
    run = ["--config", str(place / "run2" / "config.yaml"), "--gpus-per-node", "2"]
    assert main(["memory", *run]) == 0
    assert "GB of 80: fits" in capsys.readouterr().out
