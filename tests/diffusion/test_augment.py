"""EDM's augmentation: the published numbers, and what it does to an image."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sid_scale.diffusion.augment import AugmentationDraws, augment, draw_augmentation
from sid_scale.diffusion.noise import KeyedNoise
from tests.vectors import recorded_augmentation, relative_error

# Where an image is shrunk much, the published margin cuts the filter: up to 6e-5 are missing.
TOLERANCE = 1e-4


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def left_alone(count: int, **changes: float | tuple[float, float]) -> AugmentationDraws:
    """Draws that leave `count` images as they are, but for `changes`, whose gates are open."""
    draws = {}
    for name in AugmentationDraws._fields:
        value = changes.get(name, 0.0 if name.removesuffix("_gate") in changes else 1.0)
        if name == "translate":
            value = changes.get(name, (0.0, 0.0))
        draws[name] = torch.tensor([value] * count)
    draws["xflip"], draws["yflip"] = draws["xflip"].bool(), draws["yflip"].bool()
    if "xflip" not in changes:  # its gate is always open
        draws["xflip"] = torch.zeros(count, dtype=torch.bool)
    return AugmentationDraws(**draws)


def reader(path: Path) -> Callable[[str], Tensor]:
    arrays = np.load(path)
    return lambda name: torch.from_numpy(arrays[name])


@pytest.mark.reference
def test_published_augmentation(reference_dir: Path):
    path = reference_dir / "edm_augment.npz"
    read = reader(path)
    cases = json.loads(str(np.load(path)["config"]))["cases"]
    assert cases
    for p in cases:
        augmented, labels = augment(read("images"), recorded_augmentation(read, f"p{p}."), p)
        assert relative_error(augmented, read(f"p{p}.augmented")) < TOLERANCE
        assert torch.allclose(labels, read(f"p{p}.labels"), atol=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("file", "group", "source"),
    [
        ("sid_edm_losses", "fake_score_augmented_generated", "images"),
        ("sida_edm_losses", "fake_score_augmented_generated", "images"),
        ("sida_edm_losses", "fake_score_augmented_real", "real_images"),
    ],
)
def test_published_augmentation_of_the_losses(
    reference_dir: Path, file: str, group: str, source: str
):
    path = reference_dir / f"{file}.npz"
    read, p = reader(path), json.loads(str(np.load(path)["config"]))["augment"]
    augmented, labels = augment(read(source), recorded_augmentation(read, f"{group}."), p)
    assert relative_error(augmented, read(f"{group}.images")) < TOLERANCE
    assert torch.allclose(labels, read(f"{group}.labels"), atol=1e-6)


def test_without_probability_images_stay_as_they_are(images: Tensor):
    draws = draw_augmentation(KeyedNoise(0, "fake_score", torch.arange(6)), "augmentation")
    augmented, labels = augment(images, draws, 0.0)
    assert augmented.equal(images)
    assert labels.equal(torch.zeros(6, 9))


def test_an_image_of_closed_gates_comes_back_through_both_filters(images: Tensor):
    augmented, labels = augment(images, left_alone(6), 0.5)
    assert (augmented - images).abs().max() < 1e-5
    assert not labels.any()


def test_at_any_probability_half_of_all_images_are_mirrored():
    count = 1000
    ramp = torch.arange(8.0).expand(count, 1, 8, 8)
    draws = draw_augmentation(KeyedNoise(0, "fake_score", torch.arange(count)), "augmentation")
    augmented, labels = augment(ramp, draws, 1e-6)
    mirrored = augmented[:, 0, 4, 0] > 3.5
    assert labels[:, 0].bool().equal(mirrored)
    assert 450 < mirrored.sum() < 550
    assert not labels[:, 1:].any()


def test_flips_are_exact(images: Tensor):
    across, labels = augment(images, left_alone(6, xflip=1.0), 0.5)
    assert (across - images.flip(3)).abs().max() < 1e-5
    assert labels[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    over, labels = augment(images, left_alone(6, yflip=1.0), 0.5)
    assert (over - images.flip(2)).abs().max() < 1e-5
    assert labels[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_translation_moves_whole_pixels_and_reflects_the_border(images: Tensor):
    # An eighth of the image for each unit: two pixels of 16 to the right, none of 12 down.
    moved, labels = augment(images, left_alone(6, translate=(1.0, 0.0)), 0.5)
    assert (moved[..., 2:] - images[..., :-2]).abs().max() < 1e-5
    assert (moved[..., :2] - images[..., [2, 1]]).abs().max() < 1e-5
    assert labels[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_half_a_turn_is_both_flips():
    axis = torch.arange(16.0)
    smooth = torch.exp(-((axis - 9) ** 2 + (axis[:, None] - 5) ** 2) / 16).expand(1, 1, 16, 16)
    turned, labels = augment(smooth, left_alone(1, rotate=0.0), 0.5)  # by -pi
    assert (turned - smooth.flip(2, 3)).abs().max() < 0.05
    assert labels[0].tolist() == pytest.approx([0, 0, 0, -2, 0, 0, 0, 0, 0], abs=1e-6)


def test_scales_enlarge_what_is_seen():
    """A blob's width in x and y, measured by its moments."""
    axis = torch.arange(32) - 15.5
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / 8).expand(1, 1, 32, 32)

    def widths(image: Tensor) -> tuple[float, float]:
        total = image.sum()
        across, down = ((image * square).sum() / total for square in (axis**2, axis[:, None] ** 2))
        return math.sqrt(across), math.sqrt(down)

    before = widths(blob)
    larger, labels = augment(blob, left_alone(1, scale=2.0), 0.5)
    assert widths(larger) == pytest.approx([2**0.4 * width for width in before], rel=0.02)
    assert labels[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0]
    stretch = left_alone(1, aniso=2.0)._replace(aniso_rotate_gate=torch.ones(1))
    wider, labels = augment(blob, stretch, 0.5)
    assert widths(wider) == pytest.approx([2**0.4 * before[0], before[1] / 2**0.4], rel=0.02)
    assert labels[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0]


def test_an_image_does_not_depend_on_its_neighbours(images: Tensor):
    noise = KeyedNoise(0, "fake_score", torch.arange(6))
    draws = draw_augmentation(noise, "augmentation")
    far = draws._replace(translate=draws.translate.clone())
    far.translate[0] = 8.0  # the most displaced one
    together, labels = augment(images, far._replace(translate_gate=torch.zeros(6)), 0.5)
    alone = draw_augmentation(KeyedNoise(0, "fake_score", torch.tensor([5])), "augmentation")
    image, label = augment(images[5:], alone._replace(translate_gate=torch.zeros(1)), 0.5)
    assert (image - together[5:]).abs().max() < 1e-6
    assert label.equal(labels[5:])


def test_draws_of_another_name_are_others():
    noise = KeyedNoise(0, "fake_score", torch.arange(4))
    generated = draw_augmentation(noise, "augmentation of generated")
    real = draw_augmentation(noise, "augmentation of real")
    assert not any(
        a.equal(b) for a, b in zip(generated, real, strict=True) if a.is_floating_point()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_augments_without_waiting(images: Tensor):
    def augmented(device: str) -> tuple[Tensor, Tensor]:
        noise = KeyedNoise(0, "fake_score", torch.arange(6), device)
        return augment(images.to(device), draw_augmentation(noise, "augmentation"), 0.5)

    augmented("cuda")  # copies the filter there
    on_gpu = images.cuda()
    noise = KeyedNoise(0, "fake_score", torch.arange(6), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, labels = augment(on_gpu, draw_augmentation(noise, "augmentation"), 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_labels = augmented("cpu")
    assert relative_error(result.cpu(), expected) < 1e-4
    assert torch.allclose(labels.cpu(), expected_labels, atol=1e-5)
