"""What is refused before a run is built: missing folders, data that do not fit the teacher."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sid_scale.codecs import IdentityCodec, VAECodec
from sid_scale.config.parse import ConfigError
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.distill.build import build_run
from sid_scale.errors import SidScaleError
from sid_scale.networks.folder import CheckpointError, save_network
from sid_scale.zero.settings import DeepSpeedConfigError
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, random_images, tiny_folder

pytestmark = [pytest.mark.distributed, pytest.mark.faults]

PIXELS: dict[str, Any] = {"codec": IdentityCodec().describe(), "dtype": "uint8"}
LATENTS: dict[str, Any] = {"codec": VAECodec("v", [1.0] * 3, [0.0] * 3).describe()}


def write(folder: Path, images: np.ndarray, num_classes: int = 4, **how: Any) -> None:
    samples = ((f"{i}", image, i % max(num_classes, 1)) for i, image in enumerate(images))
    write_shards(folder, samples, num_classes=num_classes, shard_samples=8, **how)


def test_what_is_missing_or_does_not_fit_is_refused_with_the_reason(tmp_path: Path):
    prepare(tmp_path)
    write(tmp_path / "larger", random_images(8, (3, 16, 16)), **PIXELS)
    write(tmp_path / "unlabelled", random_images(8), num_classes=0, **PIXELS)
    write(tmp_path / "latents", np.ones((8, 6, 8, 8)), **LATENTS)
    # As sets of pixels were before they were stored as they are.
    write(tmp_path / "halves", np.ones((8, 6, 8, 8)), codec=PIXELS["codec"], dtype="float16")
    of_latents = dataclasses.replace(tiny_folder(), codec=LATENTS["codec"])
    save_network(tmp_path / "of_latents", of_latents)
    run_ranks(1, _refusals, tmp_path)


def _refusals(rank: int, folder: Path) -> None:
    here = joined()

    def refused(kind: type[SidScaleError], message: str, **settings: Any) -> None:
        with pytest.raises(kind, match=message):
            build_run(config(folder, log__samples_every_images=0, **settings), here)

    for setting in ("generator_init", "teacher"):
        missing = rf"{setting}: .*/none: no config\.json"
        refused(CheckpointError, missing, **{setting: folder / "none"})
    half = "there is no float16 for training on this device; use bf16, or float32"
    refused(DeepSpeedConfigError, half, deepspeed="zero2_fp16")
    wanted = r"wants uint8 \(3, 8, 8\) of 4 classes, codec identity: make shards for it"
    for name, held in {
        "larger": r"uint8 \(3, 16, 16\) of 4 classes, codec identity",
        "unlabelled": r"uint8 \(3, 8, 8\) without classes, codec identity",
        "latents": r"float32 \(6, 8, 8\) of 4 classes, codec vae",
        "halves": r"float16 \(6, 8, 8\) of 4 classes, codec identity",
    }.items():
        message = rf"/{name} holds {held}; teacher .*/teacher {wanted}"
        refused(CheckpointError, message, data=folder / name)
    latents = {"teacher": folder / "of_latents", "data": folder / "latents"}
    refused(ConfigError, r"stream\.xflip mirrors pixels.*--flip", **latents, stream__xflip=True)
