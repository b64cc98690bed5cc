"""The losses: published values, and what the switches do."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sid_scale.diffusion.few_step import generate
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
from sid_scale.methods.settings import SiDObjective
from sid_scale.methods.sid_losses import fake_score_loss, generator_loss
from sid_scale.networks.checkpoint_activations import checkpoint_activations
from sid_scale.networks.denoiser import Prediction
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
    images, classes = v["images"], v.classes("class_labels")
    sigma = generator_sigma(v[f"{case}_uniform"], TMAX)
    noisy = images + sigma * v[f"{case}_noise_unit"]
    y_real = teacher(noisy, sigma, classes).denoised
    y_fake, logvar, (deepest,) = fake_score(noisy, sigma, classes, features=(-1,))
    w = sid_normalizer(images, y_real)
    sid = sid_loss(images, y_real, y_fake, w, logvar, float(alpha))
    gan = generator_adversarial_loss(channel_mean(deepest), w, logvar)
    assert relative_error(sid, v[f"{case}_sid_loss"]) < 1e-4
    assert relative_error(gan, v[f"{case}_gan_loss"]) < 1e-4


@pytest.mark.reference
def test_published_fake_score_losses(v: Vectors):
    fake_score, classes = v.network("generator_alpha1.2_fake."), v.classes("class_labels")
    sigma = lognormal_sigma(v["fake_score_normal"], P_MEAN, P_STD)
    noise = sigma * v["fake_score_noise_unit"]
    denoised, logvar, (generated,) = fake_score(v["images"] + noise, sigma, classes, features=(-1,))
    on_real = fake_score(v["real_images"] + noise, sigma, classes, features=(-1,), decoded=0)
    weight = denoising_weight(sigma, v.config.sigma_data)
    denoising = denoising_loss(denoised, v["images"], weight, logvar)
    logits = channel_mean(generated), channel_mean(on_real.features[0])
    discriminator = discriminator_loss(*logits, weight, logvar)
    assert relative_error(denoising, v["fake_score_denoising_loss"]) < 1e-4
    assert relative_error(discriminator, v["fake_score_discriminator_loss"]) < 1e-4


@pytest.mark.reference
def test_published_few_step_generator(reference_dir: Path):
    two_steps = reference_dir / "sida_two_steps_1rank.npz"
    few = Vectors(reference_dir / "few_step.npz", config_from=two_steps)
    generator = Vectors(two_steps).folder("final.gen.", uncertainty=False).build()
    output = generate(
        generator,
        few["z_unit"],
        few["step_noise"],
        few.classes("class_labels"),
        few.settings["init_sigma"],
    )
    assert relative_error(output, few["output"]) < 1e-4


OBJECTIVE = SiDObjective()


@dataclasses.dataclass
class Recorded:
    """A recorded micro-batch and the networks that saw it."""

    v: Vectors

    def __post_init__(self):
        v = self.v
        self.teacher, self.fake_score = v.network("teacher."), v.network("generator_alpha1.0_fake.")
        self.images, self.classes = v["images"], v.classes("class_labels")
        self.noise = v["generator_alpha1.0_noise_unit"]
        self.sigma = generator_sigma(v["generator_alpha1.0_uniform"], TMAX)

    def generator_loss(
        self, images=None, teacher=None, *, adversarial: bool = True, objective=OBJECTIVE
    ):
        images = self.images if images is None else images
        given = images, self.classes, self.sigma, self.noise, objective
        return generator_loss(
            teacher or self.teacher, self.fake_score, *given, adversarial=adversarial
        )

    def fake_score_loss(self, objective: SiDObjective = OBJECTIVE):
        given = self.images, None, self.classes, self.sigma, self.noise, objective
        return fake_score_loss(self.fake_score, *given, self.v.config.sigma_data)


@pytest.fixture
def recorded(v: Vectors) -> Recorded:
    return Recorded(v)


@pytest.mark.reference
def test_adversarial_half_is_one_switch(recorded: Recorded):
    alone = recorded.generator_loss(adversarial=False)
    both = recorded.generator_loss(adversarial=True)
    assert set(alone.terms) == {"loss/generator_sid"}
    assert alone.total == alone.terms["loss/generator_sid"]
    halves = 0.5 * both.terms["loss/generator_sid"] + 0.5 * both.terms["loss/generator_gan"]
    torch.testing.assert_close(both.total, halves)


@pytest.mark.reference
def test_the_share_is_the_score_terms(recorded: Recorded):
    loss = recorded.generator_loss(objective=dataclasses.replace(OBJECTIVE, sid_share=0.25))
    expected = 0.25 * loss.terms["loss/generator_sid"] + 0.75 * loss.terms["loss/generator_gan"]
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.reference
def test_without_real_images_there_is_no_discriminator(recorded: Recorded):
    assert set(recorded.fake_score_loss().terms) == {"loss/fake_score"}


@pytest.mark.reference
def test_logvar_weighting_off_is_the_plain_loss(recorded: Recorded):
    r, sigma = recorded, recorded.sigma
    loss = r.fake_score_loss(dataclasses.replace(OBJECTIVE, logvar_weighting=False))
    denoised = r.fake_score(r.images + sigma * r.noise, sigma, r.classes).denoised
    plain = (denoising_weight(sigma, 0.5) * (denoised - r.images) ** 2).sum() / len(denoised)
    torch.testing.assert_close(loss.total, plain)


@pytest.mark.reference
def test_gradients_reach_the_image_through_teacher_and_fake_score(recorded: Recorded):
    images = recorded.images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(recorded.generator_loss(images).total, images)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.reference
@pytest.mark.parametrize("how", ["checkpoint", "offload"])
def test_recomputing_the_teachers_activations_changes_no_gradient(v: Vectors, how: str):
    def gradient(teacher) -> torch.Tensor:
        images = v["images"].clone().requires_grad_(True)
        Recorded(v).generator_loss(images, teacher).total.backward()
        return images.grad

    kept, recomputed = v.network("teacher."), v.network("teacher.")
    checkpoint_activations(recomputed, how)
    # The order in which gradients are added up differs, nothing else.
    torch.testing.assert_close(gradient(kept), gradient(recomputed), rtol=1e-4, atol=1e-5)


class Plain(torch.nn.Module):
    """A network whose logits differ much from sample to sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.9, 0.3, 8.0]))

    def forward(self, x, sigma, condition, *, features=(), decoded=None) -> Prediction:
        keep, spread, scale = self.weight
        logits = scale * x.mean(dim=(1, 2, 3), keepdim=True).expand(len(x), 4, 2, 2)
        return Prediction(keep * x[:decoded], spread * sigma.log(), (logits,))


class Drawn:
    """A micro-batch of 16; its losses and their gradients, whole or in parts."""

    def __init__(self) -> None:
        self.teacher, self.fake_score = Plain(), Plain()
        g = torch.Generator().manual_seed(2)
        shape = (16, 3, 8, 8)
        self.images, self.real, self.noise = (torch.randn(shape, generator=g) for _ in range(3))
        self.images += torch.randn(16, 1, 1, 1, generator=g)
        self.sigma = torch.rand(16, 1, 1, 1, generator=g) + 0.2
        self.classes = torch.arange(16) % 4

    def fake_score_loss(self, samples: slice, objective: SiDObjective):
        x, real, classes = self.images[samples], self.real[samples], self.classes[samples]
        given = x, real, classes, self.sigma[samples], self.noise[samples], objective
        return fake_score_loss(self.fake_score, *given, 0.5)

    def generator_loss(self, samples: slice, objective: SiDObjective):
        self.images.requires_grad_(True)
        given = self.images[samples], self.classes[samples]
        drawn = self.sigma[samples], self.noise[samples], objective
        return generator_loss(self.teacher, self.fake_score, *given, *drawn, adversarial=True)

    def mean(self, loss: str, size: int, group: int | None) -> dict[str, torch.Tensor]:
        """The mean over micro-batches of `size`, with the gradients of what is trained."""
        objective = dataclasses.replace(OBJECTIVE, adversarial_group=group)
        parts = [slice(first, first + size) for first in range(0, 16, size)]
        losses = [getattr(self, loss)(part, objective) for part in parts]
        total = sum(part.total for part in losses) / len(parts)
        learns = self.images if loss == "generator_loss" else self.fake_score.weight
        (gradient,) = torch.autograd.grad(total, learns)
        terms = {k: sum(part.terms[k] for part in losses) / len(parts) for k in losses[0].terms}
        return {"total": total.detach(), "gradient": gradient, **terms}


@pytest.mark.parametrize("loss", ["fake_score_loss", "generator_loss"])
def test_groups_within_a_micro_batch_are_micro_batches_of_their_own(loss: str):
    drawn = Drawn()
    expected = drawn.mean(loss, 2, None)
    for size in (16, 8, 2):
        torch.testing.assert_close(drawn.mean(loss, size, 2), expected, rtol=1e-4, atol=1e-4)
    whole = drawn.mean(loss, 16, None)
    assert relative_error(whole["gradient"], expected["gradient"]) > 0.01  # it is another loss
    torch.testing.assert_close(drawn.mean(loss, 16, 16), whole, rtol=1e-4, atol=1e-4)


def test_normalizer_has_a_floor_and_no_gradient():
    image = torch.ones(2, 1, 2, 2, requires_grad=True)
    w = sid_normalizer(image, torch.ones(2, 1, 2, 2))
    assert w.shape == (2, 1, 1, 1)
    assert not w.requires_grad
    assert w.min() == pytest.approx(1e-5)


def test_saturated_logits_are_clamped():
    w, logvar = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    logits = torch.full((1, 1, 2, 2), -1000.0, requires_grad=True)
    loss = generator_adversarial_loss(logits, w, logvar)
    assert loss.item() == pytest.approx(10, abs=1e-3)
    loss.sum().backward()
    assert logits.grad.abs().max() == 0


def test_gradients_of_a_few_step_generator_flow_through_its_last_step_alone():
    scale = torch.ones((), requires_grad=True)
    calls = []

    def generator(x, sigma, condition):
        calls.append((float(sigma[0]), torch.is_grad_enabled()))
        return type("P", (), {"denoised": x * scale})

    z = torch.ones(1, 1, 2, 2)
    generate(generator, z, torch.zeros(3, 1, 1, 2, 2), None, 2.0).sum().backward()
    assert calls == [(2.0, False), (1.5, False), (1.0, False), (0.5, True)]
    calls.clear()
    generate(generator, z, torch.zeros(3, 1, 1, 2, 2), None, 2.0, last_step=1)
    assert calls == [(2.0, False), (1.5, True)]
