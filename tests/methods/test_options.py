"""What came after SiD and SiDA: the KL gradient, weights by density ratios, guidance."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sid_scale.config.parse import ConfigError
from sid_scale.config.run import load_config
from sid_scale.methods.guidance import guided
from sid_scale.methods.losses import (
    DIVERGENCES,
    density_ratio,
    effective_share,
    kl_loss,
    sid_normalizer,
)
from sid_scale.methods.settings import SiDObjective
from sid_scale.methods.sid_losses import generator_loss
from sid_scale.networks.denoiser import Prediction

CLASSES = torch.arange(16) % 4
GAN_ALONE = {"loss_scale_generator": 0.0, "sid_share": 0.5}


class Plain(torch.nn.Module):
    """A network whose every part is easily said; it notes how it is called."""

    def __init__(self, keep: float, scale: float = 4.0) -> None:
        super().__init__()
        self.keep, self.scale = keep, scale
        self.calls: list[tuple[bool, int | None]] = []  # with gradient, decoded

    def forward(self, x, sigma, condition=None, *, features=(), decoded=None) -> Prediction:
        self.calls.append((torch.is_grad_enabled(), decoded))
        logits = self.scale * x.mean(dim=(1, 2, 3), keepdim=True).expand(len(x), 4, 2, 2)
        denoised = None if decoded == 0 else self.keep * x[:decoded]
        return Prediction(denoised, 0.3 * sigma.log(), (logits,) if features else ())


class Drawn:
    """A batch of 16 whose density ratios differ much."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        self.teacher, self.fake_score = Plain(0.9), Plain(0.7)
        self.images = torch.randn(16, 3, 8, 8, generator=g) + torch.randn(16, 1, 1, 1, generator=g)
        self.noise = torch.randn(16, 3, 8, 8, generator=g)
        self.sigma = torch.rand(16, 1, 1, 1, generator=g) + 0.2
        self.images.requires_grad_()

    def loss(self, part: slice = slice(None), *, adversarial: bool = True, gather=None, **settings):
        objective = SiDObjective(**{"loss_scale_generator": 1.0, **settings})
        return generator_loss(
            self.teacher,
            self.fake_score,
            self.images[part],
            CLASSES[part],
            self.sigma[part],
            self.noise[part],
            objective,
            adversarial=adversarial,
            of_whole_batch=gather or (lambda values: values),
        )

    def gradient(self, *given, **settings) -> Tensor:
        (gradient,) = torch.autograd.grad(self.loss(*given, **settings).total, self.images)
        return gradient

    @property
    def logits(self) -> Tensor:
        """The discriminator's, (N,)."""
        noisy = self.images + self.sigma * self.noise
        return self.fake_score.scale * noisy.detach().mean(dim=(1, 2, 3))


# --- the KL divergence's gradient ----------------------------------------------------------


@pytest.mark.parametrize("logvar_weighting", [True, False])
def test_the_kl_gradient_is_the_difference_of_the_scores_over_w(logvar_weighting: bool):
    drawn = Drawn()
    images, sigma = drawn.images.detach(), drawn.sigma
    noisy = images + sigma * drawn.noise
    y_real, y_fake = 0.9 * noisy, 0.7 * noisy
    expected = (y_fake - y_real) / sid_normalizer(images, y_real) / len(images)
    if logvar_weighting:
        expected = expected / (0.3 * sigma.log()).exp()
    gradient = drawn.gradient(adversarial=False, gradient="kl", logvar_weighting=logvar_weighting)
    torch.testing.assert_close(gradient, expected)


def test_the_kl_loss_is_half_the_squared_gradient():
    one, w = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    loss = kl_loss(images=one, y_real=3 * one, y_fake=7 * one, w=w, logvar=0 * one)
    assert loss.item() == 0.5 * ((7 - 3) / 2) ** 2


def test_no_network_keeps_activations_for_the_kl_gradient():
    drawn = Drawn()
    drawn.loss(adversarial=False, gradient="kl")
    assert drawn.teacher.calls == [(False, None)]
    assert drawn.fake_score.calls == [(False, None)]


def test_beside_the_adversarial_term_only_the_encoder_is_differentiated():
    drawn = Drawn()
    adversarial = drawn.gradient(**GAN_ALONE)
    score = drawn.gradient(adversarial=False, gradient="kl")
    drawn.fake_score.calls.clear()
    both = drawn.gradient(gradient="kl")
    assert drawn.fake_score.calls == [(False, None), (True, 0)]
    torch.testing.assert_close(both, 0.5 * score + adversarial)


# --- weights by density ratios -------------------------------------------------------------


def test_a_density_ratio_is_the_exponential_of_the_mean_logit_within_limits():
    logits = torch.tensor([0.0, 1.0, -1.0, 50.0, -50.0])[:, None, None, None].expand(5, 1, 2, 2)
    uneven = torch.tensor([[[[3.0, 1.0], [-1.0, 1.0]]]])
    ratio = density_ratio(torch.cat([logits, uneven]).requires_grad_())
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(ratio, torch.stack([e**0, e, 1 / e, 20 * e**0, 0.1 * e**0, e]))
    assert not ratio.requires_grad


@pytest.mark.parametrize(
    ("divergence", "weight"),
    [
        ("forward_kl", lambda r: r),
        ("jeffreys", lambda r: 0.6 + 0.4 * r),
        ("jensen_shannon", lambda r: r / (1 + r)),
    ],
)
@pytest.mark.parametrize("gradient", ["sid", "kl"])
def test_a_divergence_weighs_the_score_term_of_each_sample(divergence: str, weight, gradient: str):
    drawn = Drawn()
    weights = weight(drawn.logits.clamp(-10, 10).exp().clamp(0.1, 20))
    weights = weights / weights.mean()
    settings = {"gradient": gradient, "loss_scale_generator_gan": 0.0}
    plain, weighed = drawn.gradient(**settings), drawn.gradient(divergence=divergence, **settings)
    torch.testing.assert_close(weighed, weights[:, None, None, None] * plain)


def test_the_adversarial_term_has_no_such_weights():
    drawn = Drawn()
    torch.testing.assert_close(
        drawn.gradient(divergence="forward_kl", **GAN_ALONE), drawn.gradient(**GAN_ALONE)
    )


def test_reverse_kl_is_sida_as_it_is_and_gathers_nothing():
    def gather(values: Tensor) -> Tensor:
        raise AssertionError

    drawn = Drawn()
    loss = drawn.loss(divergence="reverse_kl", gather=gather)
    assert set(loss.terms) == {"loss/generator_sid", "loss/generator_gan"}


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "reverse_kl"])
@pytest.mark.parametrize("size", [1, 4])
def test_parts_of_a_batch_add_up_to_the_whole(divergence: str, size: int):
    drawn = Drawn()
    settings = {"divergence": divergence, "loss_scale_generator_gan": 0.0}
    everyone = density_ratio(drawn.logits[:, None, None, None])
    parts = [slice(low, high) for low, high in pairwise(range(0, 17, size))]
    summed = sum(drawn.gradient(part, gather=lambda _: everyone, **settings) for part in parts)
    torch.testing.assert_close(summed / len(parts), drawn.gradient(**settings))


def test_what_is_logged_is_of_the_whole_batch():
    ratios = torch.tensor([0.5, 1.5, 4.0])
    terms = Drawn().loss(divergence="forward_kl", gather=lambda _: ratios).terms
    shown = {k.removeprefix("density_ratio/"): v.item() for k, v in terms.items() if "ratio" in k}
    assert (shown["min"], shown["mean"], shown["max"]) == (0.5, 2.0, 4.0)
    assert shown["effective_share"] == pytest.approx(6.0**2 / (3 * (0.25 + 2.25 + 16)))


def test_the_effective_share_is_that_of_the_samples_that_count():
    assert effective_share(torch.ones(8)) == 1
    assert effective_share(torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.25


# --- a guided teacher ----------------------------------------------------------------------


def test_a_guided_network_is_extrapolated_away_from_its_guide():
    x, sigma = torch.ones(2, 3, 4, 4), torch.ones(2, 1, 1, 1)
    network, guide = Plain(0.8), Plain(0.5)
    denoised = guided(network, guide, 3.0)(x, sigma, CLASSES[:2]).denoised
    torch.testing.assert_close(denoised, (0.5 + 3 * (0.8 - 0.5)) * x)


def test_guidance_of_weight_1_is_the_network():
    x, sigma = torch.randn(2, 3, 4, 4), torch.ones(2, 1, 1, 1)
    denoised = guided(Plain(0.8), Plain(0.5), 1.0)(x, sigma).denoised
    assert torch.equal(denoised, 0.8 * x)


def test_guidance_is_between_two_noise_levels():
    x, sigma = torch.ones(4, 3, 4, 4), torch.tensor([0.1, 0.5, 2.0, 2.5])
    guiding = guided(Plain(0.8), Plain(0.5), 2.0, interval=(0.5, 2.0))
    denoised = guiding(x, sigma.reshape(4, 1, 1, 1)).denoised
    torch.testing.assert_close(denoised.amax(dim=(1, 2, 3)), torch.tensor([0.8, 1.1, 1.1, 0.8]))


def test_features_uncertainty_and_samples_that_are_only_encoded_are_the_networks():
    x, sigma = torch.randn(4, 3, 4, 4), torch.rand(4, 1, 1, 1)
    network, guide = Plain(0.8), Plain(0.5)
    alone = network(x, sigma, CLASSES[:4], features=(-1,), decoded=2)
    both = guided(network, guide, 2.0)(x, sigma, CLASSES[:4], features=(-1,), decoded=2)
    assert len(both.denoised) == 2
    assert torch.equal(both.logvar, alone.logvar)
    assert torch.equal(both.features[0], alone.features[0])
    encoded = guided(network, guide, 2.0)(x, sigma, features=(-1,), decoded=0)
    assert encoded.denoised is None


def test_gradients_flow_through_the_guide_into_the_images():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    guided(Plain(0.0), Plain(0.5), 3.0)(x, torch.ones(2, 1, 1, 1)).denoised.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, -1.0))


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["method=sid", "objective.divergence=jeffreys"], "which method sid has not"),
        (["objective.divergence=kl"], "none of reverse_kl, forward_kl, jeffreys"),
        (["objective.guide=teachers/lesser"], "objective.guide needs objective.guidance"),
        (["objective.guidance=2"], "objective.guidance has nothing to guide by"),
        (["objective.guidance_fake_score=2"], "guidance_fake_score has nothing to guide by"),
        (["objective.guidance_sigma=[2, 1]"], "the second number should be above the first"),
        (["objective.fake_score_updates=0"], "objective.fake_score_updates"),
        (["activations.guide=checkpoint"], "unknown key activations.guide"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: list[str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        load_config("digits", settings)


def test_by_default_a_run_is_as_published():
    fields = {f.name: f.default for f in dataclasses.fields(SiDObjective)}
    options = ("gradient", "divergence", "guide", "fake_score_updates", "guidance_fake_score")
    assert [fields[name] for name in options] == ["sid", "reverse_kl", None, 1, 1.0]
