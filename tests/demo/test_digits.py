"""The demo's data set, its judge, and the assets that are shipped with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sid_scale.codecs import IdentityCodec, open_codec
from sid_scale.demo.digits import (
    class_accuracy,
    class_accuracy_real,
    digit_images,
    pixel_features,
    upsample_scans,
)
from sid_scale.demo.prepare import ASSETS, PIXEL_TEACHER, TEACHER
from sid_scale.demo.train_teacher import (
    EDM2_TEACHER,
    EDM_TEACHER,
    TeacherRecipe,
    VAERecipe,
    fit_codec,
    learning_rate,
    train_teacher,
    train_vae,
)
from sid_scale.diffusion.heun import denoiser, heun_sample
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.networks.folder import load_network, save_network
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def digits():
    return digit_images()


@pytest.mark.parametrize("resolution", [8, 32])
def test_images_are_rgb_of_every_class(resolution: int):
    images, labels = digit_images(resolution)
    assert images.shape == (1797, 3, resolution, resolution)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))
    assert (images[:, :1] == images).all()  # grey
    assert images.min() == 0
    assert images.max() == 255


@pytest.mark.parametrize("resolution", [8, 32])
def test_features_are_the_scans_again(resolution: int):
    features = pixel_features(digit_images(resolution)[0])
    scans = load_digits().images.reshape(-1, 64) / 8 - 1
    assert features.shape == (1797, 64)
    assert features.dtype == np.float64
    assert np.abs(features - scans).max() < 0.01
    distance = frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(scans))
    assert distance < 1e-3


def test_upsampling_keeps_averages_and_smooths():
    scans = torch.zeros(1, 1, 8, 8)
    scans[..., 3:5, 2:6] = 1.0
    scans[..., 5, 4] = 0.5
    images = upsample_scans(scans, 4)
    averages = torch.nn.functional.avg_pool2d(images, 4)
    torch.testing.assert_close(averages, scans, atol=0.01, rtol=0)
    assert images.unique().numel() > 10  # not copies of the scans' three values


def test_features_refuse_what_is_not_an_image(digits):
    with pytest.raises(ValueError, match="uint8"):
        pixel_features(digits[0].float())
    for wrong in (digits[0][:, :1], digits[0][..., :24], digits[0][..., :20, :20]):
        with pytest.raises(ValueError, match="multiple of 8"):
            pixel_features(wrong)


def test_judge_reads_unseen_digits_and_not_noise(digits):
    images, labels = digits
    assert class_accuracy_real() > 0.97
    wrong = (labels + 1) % 10
    assert class_accuracy(images, wrong) < 0.03


# --- the assets ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher():
    return shipped(TEACHER)


def shipped(folder: Path):
    saved = load_network(folder)
    return saved.build(), open_codec(saved.codec, beside=folder)


def test_assets_are_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 3e6
    assert sum(path.stat().st_size for path in files) < 7e6


def test_codec_brings_digits_back(digits, teacher):
    images = digits[0][::4]
    _, codec = teacher
    stored = codec.encode(images)
    latents = codec.sample(stored, torch.zeros)
    np.testing.assert_allclose(latents.mean(dim=(0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(latents.std(dim=(0, 2, 3)), 0.5, atol=0.05)
    returned, real = (
        FeatureStatistics.of(pixel_features(x)) for x in (codec.decode(latents), images)
    )
    assert frechet_distance(returned, real) < 0.01


@pytest.mark.parametrize("folder", [TEACHER, PIXEL_TEACHER], ids=["latents", "pixels"])
def test_teacher_draws_the_digits_it_is_asked_for(folder: Path):
    network, codec = shipped(folder)
    labels = torch.arange(10).repeat(10)
    shape = network.architecture.sample_shape
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(0))
    latents = heun_sample(denoiser(network, labels), noise, steps=18)
    assert class_accuracy(codec.decode(latents), labels) >= 0.95


def test_teacher_knows_its_uncertainty(teacher):
    network, _ = teacher
    config = network.architecture
    shape = (2, config.img_channels, config.img_resolution, config.img_resolution)
    logvar = network(torch.zeros(shape), torch.tensor([0.01, 10.0]), torch.arange(2)).logvar
    assert logvar.shape == (2, 1, 1, 1)
    assert logvar.isfinite().all()


# --- their training -----------------------------------------------------------------------


def silent(_):
    pass


def test_training_is_a_function_of_its_seeds(digits, tmp_path):
    images, labels = digits[0][:64], digits[1][:64]
    small = replace(EDM2_TEACHER.architecture, model_channels=16, channels_per_head=16)
    recipe = replace(EDM2_TEACHER, architecture=small, iterations=3, batch=8)

    def weights(seed):
        vae = train_vae(images, VAERecipe(iterations=2, batch=4, seed=seed), silent)
        vae.save_pretrained(tmp_path / "vae")
        codec, stored = fit_codec(tmp_path / "vae", images)
        run_ranks(1, _train_teacher, tmp_path, codec, stored, labels, recipe)
        return torch.cat([w.flatten() for w in load_network(tmp_path / "teacher").state.values()])

    first, again, other = weights(0), weights(0), weights(1)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _train_teacher(rank: int, folder: Path, *given) -> None:
    save_network(folder / "teacher", train_teacher(*given, silent))


def test_training_in_pixels_is_a_function_of_its_seed(tmp_path):
    small = replace(EDM_TEACHER.architecture, model_channels=8)
    run_ranks(1, _train_in_pixels, tmp_path, replace(EDM_TEACHER, architecture=small))
    first, again, other = (load_network(tmp_path / name).state for name in ("1", "1 again", "2"))
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())


def _train_in_pixels(rank: int, folder: Path, recipe: TeacherRecipe) -> None:
    codec, (images, labels) = IdentityCodec(), digit_images(8)
    for name, seed in (("1", 1), ("1 again", 1), ("2", 2)):
        seeded = replace(recipe, iterations=3, batch=8, seed=seed)
        network = train_teacher(codec, codec.encode(images), labels, seeded, silent)
        save_network(folder / name, network)


def test_learning_rate_rises_then_falls_with_the_inverse_root():
    recipe = replace(EDM2_TEACHER, lr=1.0, warmup=10, decay_from=100)
    assert learning_rate(0, recipe) == pytest.approx(0.1)
    assert learning_rate(50, recipe) == learning_rate(100, recipe) == 1.0
    assert learning_rate(400, recipe) == pytest.approx(0.5)
