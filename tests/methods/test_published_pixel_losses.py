"""The losses of SiD and SiDA on EDM's networks: published values and gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sid_scale.diffusion.sigma import generator_sigma, lognormal_sigma
from sid_scale.methods.losses import (
    channel_mean,
    denoising_loss,
    denoising_weight,
    discriminator_loss,
    generator_adversarial_loss,
    sid_loss,
    sid_normalizer,
)
from tests.vectors import Vectors, relative_error

pytestmark = pytest.mark.reference


@pytest.fixture(params=["sid_edm_losses", "sida_edm_losses"])
def v(reference_dir: Path, request) -> Vectors:
    return Vectors(reference_dir / f"{request.param}.npz")


@pytest.mark.parametrize("alpha", ["1.0", "1.2"])
def test_generator_losses_and_their_gradients(v: Vectors, alpha: str):
    case = f"generator_alpha{alpha}"
    teacher, fake_score = v.network("teacher."), v.network(f"{case}_fake.")
    images, classes = v["images"].requires_grad_(), v.classes("class_labels")
    sigma = generator_sigma(v[f"{case}_uniform"], v.settings["tmax"])
    noisy = images + sigma * v[f"{case}_noise_unit"]
    y_real = teacher(noisy, sigma, classes).denoised
    y_fake, _, (deepest,) = fake_score(noisy, sigma, classes, features=(-1,))
    w, none = sid_normalizer(images, y_real), torch.zeros_like(sigma)

    def check(loss: Tensor, name: str) -> None:
        (gradient,) = torch.autograd.grad(loss.sum(), images, retain_graph=True)
        assert relative_error(loss.detach(), v[f"{case}_{name}_loss"]) < 1e-4
        assert relative_error(gradient, v[f"{case}_{name}_grad_images"]) < 1e-4

    check(sid_loss(images, y_real, y_fake, w, none, float(alpha)), "sid")
    if f"{case}_gan_loss" in v:
        check(generator_adversarial_loss(channel_mean(deepest), w, none), "gan")


@pytest.mark.parametrize("case", ["fake_score", "fake_score_augmented"])
def test_fake_score_losses(v: Vectors, case: str):
    """`case` with augmentation: images as recorded after it, and their labels."""
    fake_score, classes = v.network("generator_alpha1.2_fake."), v.classes("class_labels")
    sigma = lognormal_sigma(v[f"{case}_normal"], v.settings["P_mean"], v.settings["P_std"])
    noise = sigma * v[f"{case}_noise_unit"]
    augmented = case != "fake_score"
    images = v[f"{case}_generated.images"] if augmented else v["images"]
    labels = v[f"{case}_generated.labels"] if augmented else None
    weight, none = denoising_weight(sigma, v.config.sigma_data), torch.zeros_like(sigma)
    denoised, _, (generated,) = fake_score(
        images + noise, sigma, classes, features=(-1,), augment_labels=labels
    )
    denoising = denoising_loss(denoised, images, weight, none)
    assert relative_error(denoising, v[f"{case}_denoising_loss"]) < 1e-4
    if f"{case}_discriminator_loss" not in v:
        return
    real = v[f"{case}_real.images"] if augmented else v["real_images"]
    labels = v[f"{case}_real.labels"] if augmented else None
    on_real = fake_score(
        real + noise, sigma, classes, features=(-1,), decoded=0, augment_labels=labels
    )
    logits = channel_mean(generated), channel_mean(on_real.features[0])
    discriminator = discriminator_loss(*logits, weight, none, logit_limit=None)
    assert relative_error(discriminator, v[f"{case}_discriminator_loss"]) < 1e-4
