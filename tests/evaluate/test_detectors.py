"""Detectors: called as their publishers call them, and refused when they are something else."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sid_scale.evaluate.detectors import (
    DetectorError,
    DetectorFiles,
    Inception,
    open_detectors,
    prepare_for_dinov2,
)
from sid_scale.evaluate.features import latent_features, pixel_features
from tests.evaluate.detectors import CLASSES, FEATURES, write_dinov2, write_inception

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def test_inception_gives_features_and_probabilities_without_the_last_bias(
    tmp_path: Path, images: torch.Tensor
):
    network = torch.jit.load(write_inception(tmp_path / "inception.pt"))
    opened = open_detectors(["fid", "is"], DetectorFiles(tmp_path / "inception.pt"), CPU)
    features, classes = (opened.extract[k](images) for k in ("inception", "inception_p"))
    assert features.shape == (5, FEATURES)
    assert classes.shape == (5, CLASSES)
    torch.testing.assert_close(features, network(images, return_features=True))
    logits = F.linear(features, network.output.weight)
    torch.testing.assert_close(classes, torch.softmax(20 * logits, dim=1))


def test_dinov2_gives_the_class_token_of_a_resized_image(tmp_path: Path, images: torch.Tensor):
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(write_dinov2(tmp_path / "dinov2"))
    opened = open_detectors(["fd_dinov2"], DetectorFiles(dinov2=tmp_path / "dinov2"), CPU)
    with torch.no_grad():
        seen = opened.extract["dinov2"](images)
        expected = network(prepare_for_dinov2(images)).pooler_output  # the same token
    assert seen.shape == (5, 16)
    torch.testing.assert_close(seen, expected)
    assert len(opened.hashes["dinov2"]) == 64


@pytest.mark.parametrize("size", [32, 512])
def test_dinov2s_resize_is_bicubic_with_antialiasing(size: int):
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (size, size, 3), dtype=np.uint8)  # Pillow clips on the way
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    prepared = prepare_for_dinov2(tensor)[0]
    mean, std = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])
    back = (prepared * torch.tensor(std) + torch.tensor(mean)).permute(1, 2, 0).numpy() * 255
    reference = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    assert prepared.shape == (3, 224, 224)
    assert np.abs(back - reference).max() < 1.5  # Pillow rounds to whole numbers


def test_pixels_and_latents_are_seen_in_eight_by_eight_places(images: torch.Tensor):
    features = pixel_features(images)
    assert features.shape == (5, 64)
    patch = images[2, :, 4:8, 8:12].double().mean() / 127.5 - 1
    assert features[2, 10].item() == pytest.approx(patch.item())
    assert pixel_features(images[..., :20, :20]).shape == (5, 64)
    latents = torch.randn(2, 4, 64, 64)
    assert latent_features(latents).shape == (2, 256)
    small = torch.randn(2, 1, 8, 8)
    assert torch.equal(latent_features(small), small.flatten(1))


@pytest.mark.faults
def test_what_is_missing_or_something_else_is_named(tmp_path: Path, images: torch.Tensor):
    def refused(match: str, metric: str, **files: Path) -> None:
        with pytest.raises(DetectorError, match=match):
            open_detectors([metric], DetectorFiles(**files), CPU)

    refused(r"fid: need .*inception-2015-12-05\.pt.*--inception FILE", "fid")
    refused(r"fd_dinov2: need .*facebook/dinov2-large.*--dinov2 FOLDER", "fd_dinov2")
    refused("nowhere: not there", "is", inception=tmp_path / "nowhere")
    (tmp_path / "text.pt").write_text("no network")
    refused("text.pt: no TorchScript file", "recall", inception=tmp_path / "text.pt")
    (tmp_path / "empty").mkdir()
    refused(r"empty: no model\.safetensors there", "fd_dinov2", dinov2=tmp_path / "empty")
    damaged = write_dinov2(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"broken")
    refused("damaged: damaged, or no DINOv2", "fd_dinov2", dinov2=damaged)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "other.pt"))
    with pytest.raises(DetectorError, match="cannot be called with return_features=True"):
        Inception(tmp_path / "other.pt", CPU).features(images)
