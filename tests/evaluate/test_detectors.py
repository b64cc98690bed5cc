"""Detectors: called as their publishers call them, and refused when they are something else."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from sid_scale.evaluate.detectors import (
    DetectorError,
    DetectorFiles,
    Inception,
    open_detectors,
    positions_for_dinov2,
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

    network = Dinov2Model.from_pretrained(write_dinov2(tmp_path / "dinov2", grid=16))
    opened = open_detectors(["fd_dinov2"], DetectorFiles(dinov2=tmp_path / "dinov2"), CPU)
    with torch.no_grad():
        seen = opened.extract["dinov2"](images)
        expected = network(prepare_for_dinov2(images)).pooler_output  # the same token
    assert seen.shape == (5, 16)
    torch.testing.assert_close(seen, expected)
    assert len(opened.hashes["dinov2"]) == 64


def test_dinov2s_positions_are_resized_as_in_the_published_network(
    tmp_path: Path, images: torch.Tensor
):
    """Bicubic from 37x37 patches by (16 + 0.1) / 37: a patch is where it is through the scale."""
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(write_dinov2(tmp_path / "dinov2", grid=37))
    given = network.embeddings.position_embeddings.detach()
    used = positions_for_dinov2(given, patch_size=14)
    assert used.shape == (1, 1 + 16 * 16, 16)
    assert torch.equal(used[:, 0], given[:, 0])
    side = bicubic_matrix(16, 37, scale=16.1 / 37)
    grid = given[0, 1:].double().numpy().reshape(37, 37, 16)
    expected = np.einsum("ai,bj,ijd->abd", side, side, grid).reshape(256, 16)
    np.testing.assert_allclose(used[0, 1:].numpy(), expected, atol=1e-6)
    exact = np.einsum("ai,bj,ijd->abd", *[bicubic_matrix(16, 37, scale=16 / 37)] * 2, grid)
    assert np.abs(exact.reshape(256, 16) - expected).max() > 1e-2  # what transformers does

    opened = open_detectors(["fd_dinov2"], DetectorFiles(dinov2=tmp_path / "dinov2"), CPU)
    network.embeddings.interpolate_pos_encoding = lambda *_: used
    with torch.no_grad():
        seen = opened.extract["dinov2"](images)
        torch.testing.assert_close(seen, network(prepare_for_dinov2(images)).pooler_output)


def bicubic_matrix(to: int, size: int, scale: float) -> np.ndarray:
    """Keys' kernel with a = -0.75, edges repeated, pixels' centres at halves: (to, size)."""

    def weight(d: float) -> float:
        d, a = abs(d), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    matrix = np.zeros((to, size))
    for row in range(to):
        at = (row + 0.5) / scale - 0.5
        for i in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[row, min(max(i, 0), size - 1)] += weight(at - i)
    return matrix


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
    refused("text.pt: neither TorchScript", "recall", inception=tmp_path / "text.pt")
    (tmp_path / "empty").mkdir()
    refused(r"empty: no model\.safetensors there", "fd_dinov2", dinov2=tmp_path / "empty")
    damaged = write_dinov2(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"broken")
    refused("damaged: damaged, or no DINOv2", "fd_dinov2", dinov2=damaged)
    rename_weights(write_dinov2(tmp_path / "renamed") / "model.safetensors")
    refused("renamed: damaged, or no DINOv2: no weights .* there", "fd_dinov2",
            dinov2=tmp_path / "renamed")  # fmt: skip
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "other.pt"))
    with pytest.raises(DetectorError, match="cannot be called with return_features=True"):
        Inception(tmp_path / "other.pt", CPU).features(images)


@pytest.mark.faults
def test_metrics_that_need_a_missing_detector_are_named_and_no_others():
    metrics = ["fd_pixels", "density", "is", "kd_dinov2"]
    with pytest.raises(DetectorError, match=r"^metrics density, is: need the Inception"):
        open_detectors(metrics, DetectorFiles(), CPU)
    with pytest.raises(DetectorError, match=r"^metrics kd_dinov2: need DINOv2"):
        open_detectors(["fd_pixels", "kd_dinov2"], DetectorFiles(), CPU)


def rename_weights(path: Path) -> None:
    """As in a folder of some other network."""
    save_file({f"other.{name}": value for name, value in load_file(path).items()}, path)
