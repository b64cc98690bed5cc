"""The losses: published values, and what the switches do."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sid_scale.config.groups import ObjectiveConfig
from sid_scale.diffusion.few_step import generate
from sid_scale.diffusion.noise import fake_score_sigma, generator_sigma
from sid_scale.distill.step import Draws, fake_score_loss, generator_loss
from sid_scale.methods.losses import (
    denoising_loss,
    denoising_weight,
    discriminator_loss,
    generator_adversarial_loss,
    sid_loss,
    sid_weight,
)
from sid_scale.networks.checkpoint_activations import checkpoint_activations
from tests.vectors import Vectors, relative_error

TMAX, P_MEAN, P_STD = 800.0, -0.4, 1.0


@pytest.fixture
def v(reference_dir: Path) -> Vectors:
    return Vectors(reference_dir / "sida_losses.npz")


@pytest.mark.reference
@pytest.mark.parametrize("alpha", ["1.0", "1.2"])
def test_published_generator_losses(v: Vectors, alpha: str):
    case = f"generator_alpha{alpha}"
    teacher, fake_score = v.network("teacher."), v.network(f"{case}_fake.")
    images, labels = v["images"], v["class_labels"]
    sigma = generator_sigma(v[f"{case}_uniform"], TMAX)
    noisy = images + sigma * v[f"{case}_noise_unit"]
    y_real = teacher(noisy, sigma, labels).denoised
    y_fake, logits, logvar = fake_score(noisy, sigma, labels)
    weight = sid_weight(images, y_real)
    sid = sid_loss(images, y_real, y_fake, weight, logvar, float(alpha))
    gan = generator_adversarial_loss(logits, weight, logvar)
    assert relative_error(sid, v[f"{case}_sid_loss"]) < 1e-4
    assert relative_error(gan, v[f"{case}_gan_loss"]) < 1e-4


@pytest.mark.reference
def test_published_fake_score_losses(v: Vectors):
    fake_score, labels = v.network("generator_alpha1.2_fake."), v["class_labels"]
    sigma = fake_score_sigma(v["fake_score_normal"], P_MEAN, P_STD)
    noise = sigma * v["fake_score_noise_unit"]
    denoised, on_generated, logvar = fake_score(v["images"] + noise, sigma, labels)
    on_real = fake_score(v["real_images"] + noise, sigma, labels, encoder_only=True)
    weight = denoising_weight(sigma, v.config.sigma_data)
    denoising = denoising_loss(denoised, v["images"], weight, logvar)
    discriminator = discriminator_loss(on_generated, on_real.encoder_logits, weight, logvar)
    assert relative_error(denoising, v["fake_score_denoising_loss"]) < 1e-4
    assert relative_error(discriminator, v["fake_score_discriminator_loss"]) < 1e-4


@pytest.mark.reference
def test_published_few_step_generator(reference_dir: Path):
    two_steps = reference_dir / "sida_two_steps_1rank.npz"
    few = Vectors(reference_dir / "few_step.npz", config_from=two_steps)
    generator = Vectors(two_steps).network("final.gen.", uncertainty=False)
    output = generate(
        generator,
        few["z_unit"],
        few["step_noise"],
        few["class_labels"],
        few.settings["init_sigma"],
    )
    assert relative_error(output, few["output"]) < 1e-4


def networks(v: Vectors):
    draws = Draws(
        latent=v["images"],
        between=v["images"][None][:0],
        level=v["generator_alpha1.0_uniform"],
        noise=v["generator_alpha1.0_noise_unit"],
    )
    return v.network("teacher."), v.network("generator_alpha1.0_fake."), draws


@pytest.mark.reference
def test_adversarial_half_is_one_switch(v: Vectors):
    teacher, fake_score, draws = networks(v)
    objective = ObjectiveConfig()

    def loss(adversarial: bool):
        return generator_loss(
            teacher, fake_score, v["images"], v["class_labels"], draws, objective,
            adversarial=adversarial,
        )  # fmt: skip

    alone, both = loss(False), loss(True)
    assert set(alone.terms) == {"generator_sid"}
    assert alone.total == alone.terms["generator_sid"]
    halves = 0.5 * both.terms["generator_sid"] + 0.5 * both.terms["generator_gan"]
    torch.testing.assert_close(both.total, halves)


@pytest.mark.reference
def test_without_real_images_there_is_no_discriminator(v: Vectors):
    _, fake_score, draws = networks(v)
    loss = fake_score_loss(
        fake_score, v["images"], None, v["class_labels"], draws, ObjectiveConfig(), 0.5
    )
    assert set(loss.terms) == {"fake_score"}
    assert "real" not in loss.logits


@pytest.mark.reference
def test_logvar_weighting_off_is_the_plain_loss(v: Vectors):
    _, fake_score, draws = networks(v)
    objective = dataclasses.replace(ObjectiveConfig(), logvar_weighting=False)
    arguments = v["images"], None, v["class_labels"], draws
    loss = fake_score_loss(fake_score, *arguments, objective, 0.5)
    sigma = fake_score_sigma(draws.level, P_MEAN, P_STD)
    denoised = fake_score(v["images"] + sigma * draws.noise, sigma, v["class_labels"]).denoised
    plain = (denoising_weight(sigma, 0.5) * (denoised - v["images"]) ** 2).sum() / len(denoised)
    torch.testing.assert_close(loss.total, plain)


@pytest.mark.reference
def test_gradients_reach_the_image_through_teacher_and_fake_score(v: Vectors):
    teacher, fake_score, draws = networks(v)
    images = v["images"].clone().requires_grad_(True)
    loss = generator_loss(
        teacher, fake_score, images, v["class_labels"], draws, ObjectiveConfig(), adversarial=True
    )
    (gradient,) = torch.autograd.grad(loss.total, images)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.reference
@pytest.mark.parametrize("how", ["checkpoint", "offload"])
def test_sparing_the_teachers_activations_changes_no_gradient(v: Vectors, how: str):
    def gradient(teacher) -> torch.Tensor:
        _, fake_score, draws = networks(v)
        images = v["images"].clone().requires_grad_(True)
        loss = generator_loss(
            teacher, fake_score, images, v["class_labels"], draws, ObjectiveConfig(),
            adversarial=True,
        )  # fmt: skip
        loss.total.backward()
        return images.grad

    kept, spared = v.network("teacher."), v.network("teacher.")
    checkpoint_activations(spared, how)
    # The order in which gradients are added up differs, nothing else.
    torch.testing.assert_close(gradient(kept), gradient(spared), rtol=1e-4, atol=1e-5)


def test_weight_has_a_floor_and_no_gradient():
    image = torch.ones(2, 1, 2, 2, requires_grad=True)
    weight = sid_weight(image, torch.ones(2, 1, 2, 2))
    assert weight.shape == (2, 1, 1, 1)
    assert not weight.requires_grad
    assert weight.min() == pytest.approx(1e-5)


def test_saturated_logits_are_clamped():
    weight, logvar = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    logits = torch.full((1, 1, 2, 2), -1000.0, requires_grad=True)
    loss = generator_adversarial_loss(logits, weight, logvar)
    assert loss.item() == pytest.approx(10, abs=1e-3)
    loss.sum().backward()
    assert logits.grad.abs().max() == 0


def test_gradients_of_a_few_step_generator_flow_through_its_last_step_alone():
    scale = torch.ones((), requires_grad=True)
    calls = []

    def generator(x, sigma, labels):
        calls.append((float(sigma[0]), torch.is_grad_enabled()))
        return type("P", (), {"denoised": x * scale})

    z = torch.ones(1, 1, 2, 2)
    generate(generator, z, torch.zeros(3, 1, 1, 2, 2), torch.zeros(1, 1), 2.0).sum().backward()
    assert calls == [(2.0, False), (1.5, False), (1.0, False), (0.5, True)]
    calls.clear()
    generate(generator, z, torch.zeros(3, 1, 1, 2, 2), torch.zeros(1, 1), 2.0, last_step=1)
    assert calls == [(2.0, False), (1.5, True)]
