"""EDM's pixel networks from EDM's files to the report: every family, with classes and without.

Pickled teacher and zip of PNGs -> folders -> SiDA on two ranks at ZeRO 2, with a preset's settings
-> consolidation -> images -> metrics -> report.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from sid_scale.cli import main
from sid_scale.config.run import RunConfig, load_config
from sid_scale.distill.loop import train
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.folder import load_network
from sid_scale.zero.settings import find_deepspeed_json
from tests.evaluate.evaluations import evaluate, read
from tests.networks.edm.published import (
    ADM,
    DDPMPP,
    NCSNPP,
    published,
    settings_of,
    snapshot,
)
from tests.networks.published import write
from tests.ranks import joined, run_ranks
from tests.sources import edm_zip, write_zip
from tests.tiny import NO_WARM_UP, random_images

pytestmark = pytest.mark.distributed

# Teacher, and the preset whose settings its run has.
FAMILIES = {
    "ddpmpp": (replace(DDPMPP, label_dim=0), "edm-cifar10-uncond-sida"),
    "ddpmpp-cond": (DDPMPP, "edm-cifar10-cond-sida"),
    "ncsnpp": (NCSNPP, "edm-ffhq64-sida"),
    "ncsnpp-cond": (replace(NCSNPP, label_dim=4), "edm-cifar10-cond-sida"),
    "adm": (replace(ADM, label_dim=0), "edm-imagenet64-sida"),
    "adm-cond": (ADM, "edm-imagenet64-sida"),
}


HALF = "adm-cond"  # as published, in float16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers, shards and finished runs of all families."""
    folder = tmp_path_factory.mktemp("pixels")
    half = json.loads(find_deepspeed_json("zero2_fp16").read_text())
    half["fp16"]["initial_scale_power"] = 0  # a search for the loss scale would skip all updates
    (folder / "half.json").write_text(json.dumps(half))
    images = random_images(40)
    for data, labels in (("plain", None), ("labelled", np.arange(40) % 4)):
        source = write_zip(folder / f"{data}.zip", edm_zip(images, labels))
        shards = ["--source", str(source), "--out", str(folder / data)]
        assert main(["shards", *shards, "--workers", "1"]) == 0
    for name, (architecture, _) in FAMILIES.items():
        assert main(["import", str(write_teacher(folder, name, architecture)),
                     str(folder / name / "teacher")]) == 0  # fmt: skip
    run_ranks(2, _train, folder)
    return folder


def write_teacher(folder: Path, name: str, architecture: EDMArchitecture) -> Path:
    """A network as EDM publishes it, beside what else such a file holds."""
    torch.manual_seed(0)
    state = architecture.build().state_dict()
    for tensor in (t for key, t in state.items() if key.endswith(".weight") and t.ndim > 1):
        tensor.copy_(0.05 * torch.randn_like(tensor))
    (folder / name).mkdir()
    network = published(architecture, state, **settings_of(architecture))
    return write(folder / name / f"edm-{name}.pkl", snapshot(network))


def settings(folder: Path, name: str) -> RunConfig:
    architecture, preset = FAMILIES[name]
    values = {
        "run_dir": folder / name / "run",
        "teacher": folder / name / "teacher",
        "data": folder / ("labelled" if architecture.label_dim else "plain"),
        "deepspeed": folder / "half.json" if name == HALF else "zero2_fp32",
        "batch_size": 8,
        "micro_batch": 2,
        "objective.adversarial_group": 2,
        "total_images": 16,
        "log.every_images": 8,
        "log.samples_every_images": 16,
        "log.samples": 4,
        "checkpoint.every_images": 16,
        **NO_WARM_UP,
    }
    if not architecture.augment_dim:
        values["objective.augmentation"] = 0
    return load_config(preset, [f"{key}={value}" for key, value in values.items()])


def _train(rank: int, folder: Path) -> None:
    get_accelerator().is_fp16_supported = lambda: True  # slowly, on CPUs
    for name in FAMILIES:
        train(settings(folder, name), joined())


def test_shards_hold_what_the_zips_hold(place: Path):
    for data, classes in (("plain", 0), ("labelled", 4)):
        index = json.loads((place / data / "index.json").read_text())
        assert (index["num_classes"], index["sample_shape"]) == (classes, [3, 8, 8])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_is_distilled(name: str, place: Path):
    architecture, _ = FAMILIES[name]
    run, teacher = place / name / "run", load_network(place / name / "teacher")
    generator = load_network(run / "generator")
    assert teacher.architecture == architecture
    assert replace(generator.architecture, dropout=architecture.dropout) == architecture
    moved = [k for k, w in teacher.state.items() if not torch.equal(w, generator.state[k])]
    assert any(k.startswith("model.enc.") for k in moved)
    assert any(k.startswith("model.dec.") for k in moved)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/discriminator", "loss/generator_gan"} <= set().union(*lines)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_run_becomes_images_metrics_and_a_report(name: str, place: Path, tmp_path: Path):
    run, out = place / name / "run", tmp_path / "published"
    latest = str(run / "checkpoints" / "latest")
    assert main(["consolidate", latest, str(out), "--role", "generator_ema"]) == 0
    last, average = load_network(run / "generator"), load_network(out)
    assert all(torch.equal(last.state[k], average.state[k]) for k in last.state)

    made = ["generate", "--generator", str(out), "--seeds", "0-3", "--out", str(tmp_path / "made")]
    classes = ["--classes", "1"] if FAMILIES[name][0].label_dim else []
    assert main([*made, *classes, "--npz"]) == 0
    with np.load(tmp_path / "made" / "images.npz") as held:
        assert held["arr_0"].shape == (4, 8, 8, 3)

    data = place / ("labelled" if FAMILIES[name][0].label_dim else "plain")
    reference, measured = tmp_path / "reference.npz", run / "evaluation" / "published"
    evaluate("reference", "--data", data, "--metrics", "fd_pixels", "--out", reference)
    common = ["--metrics", "fd_pixels", "--reference", reference, "--num", 8]
    evaluate("run", "--generator", out, *common, "--labels", data, "--out", measured)
    teacher = ["--teacher", place / name / "teacher", "--steps", 3]
    evaluate("teacher", *teacher, *common, "--out", tmp_path / "teacher")
    for folder in (measured, tmp_path / "teacher"):
        assert np.isfinite(read(folder)["fd_pixels"])

    assert main(["report", str(run), "--out", str(tmp_path / "report.html"), "--samples", "2"]) == 0
    assert "fd_pixels" in (tmp_path / "report.html").read_text()
    assert main(["card", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert ("class-conditional" in card) == bool(FAMILIES[name][0].label_dim)
