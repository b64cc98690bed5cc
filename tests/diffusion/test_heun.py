"""EDM's samplers: against the published implementation, a plain one, and the exact solution."""

import math
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale.diffusion.heun import (
    SamplerSettings,
    denoiser,
    edm_sample,
    guided,
    heun_sample,
    steps_for,
)
from tests.vectors import Vectors, relative_error


@pytest.fixture
def vectors(reference_dir: Path):
    """Recorded sampling runs, the network they used and its lesser guide."""
    forward = reference_dir / "edm2_forward.npz"
    sampler = Vectors(reference_dir / "edm_heun_sampler.npz", config_from=forward)
    labels = sampler.classes("class_labels")
    main = denoiser(Vectors(forward).network("param."), labels)
    return sampler, main, denoiser(sampler.network("guide."), labels)


@pytest.mark.reference
def test_reproduces_the_published_sampler(vectors):
    sampler, main, _ = vectors
    images = heun_sample(main, sampler["noise_unit"], int(sampler["num_steps"]))
    assert relative_error(images, sampler["output_unguided"]) < 1e-4


@pytest.mark.reference
def test_reproduces_published_guidance(vectors):
    sampler, main, guide = vectors
    denoise = guided(main, guide, float(sampler["guidance"]))
    images = heun_sample(denoise, sampler["noise_unit"], int(sampler["num_steps"]))
    assert relative_error(images, sampler["output_guided"]) < 1e-4


@pytest.mark.parametrize(("evaluations", "steps"), [(17, 9), (35, 18), (63, 32)])
def test_takes_the_stated_number_of_evaluations(evaluations, steps):
    seen = []

    def denoise(x, sigma):
        seen.append(float(sigma))
        return torch.zeros_like(x)

    assert steps_for(evaluations) == steps
    heun_sample(denoise, torch.ones(1, 1, 2, 2), steps)
    assert len(seen) == evaluations
    assert seen[0] == pytest.approx(80.0)
    assert min(seen) == pytest.approx(0.002, rel=1e-4)


def test_gaussian_data_come_out_with_their_moments():
    """For data N(mean, s^2) the denoiser is known, and the ODE's solution is linear in x."""
    mean, s, denoise = gaussian()
    noise = torch.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    images = heun_sample(denoise, noise, 128)
    exact = mean + (80.0 * noise - mean) * s / (80.0**2 + s**2) ** 0.5
    torch.testing.assert_close(images, exact, atol=2e-3, rtol=0)
    coarse = heun_sample(denoise, noise, 16)
    assert (coarse - exact).abs().max() > (images - exact).abs().max()


def gaussian():
    """Mean and std of Gaussian data, and their denoiser."""
    mean, s = 0.3, 0.5
    return mean, s, lambda x, sigma: (sigma**2 * mean + s**2 * x) / (sigma**2 + s**2)


# --- with churn ---------------------------------------------------------------------------

IMAGENET = {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}


def plain_stochastic_sampler(denoise, normals, steps, s_churn, s_min, s_max, s_noise):
    """Algorithm 2 of arXiv 2206.00364, line by line."""
    t = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
         for i in range(steps)] + [0.0]  # fmt: skip
    x = next(normals) * t[0]
    for i in range(steps):
        gamma = min(s_churn / steps, 2**0.5 - 1) if s_min <= t[i] <= s_max else 0.0
        t_hat, x_hat = t[i], x
        if gamma > 0:
            t_hat = t[i] + gamma * t[i]
            x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * next(normals)
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x - denoise(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2)
    return x


@pytest.mark.parametrize(
    ("steps", "churn"),
    [
        (8, {"s_churn": 1, "s_min": 0, "s_max": math.inf, "s_noise": 1}),
        (18, IMAGENET),  # more than sqrt(2) - 1 a step: cut to that
        (256, IMAGENET),
    ],
)
def test_churn_follows_the_algorithm(steps, churn):
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(steps + 1, 3, 2, 4, 4)).astype(np.float32)

    def denoise(x, sigma):  # of two points, -1 and 1 in each place
        scaled = x / sigma**2
        return scaled.tanh() if isinstance(x, torch.Tensor) else np.tanh(scaled)

    draws = iter(torch.from_numpy(normals))
    images = edm_sample(denoise, lambda: next(draws), SamplerSettings(steps, **churn))
    plain = plain_stochastic_sampler(denoise, iter(normals.astype(np.float64)), steps, **churn)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), torch.from_numpy(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.reference
def test_without_churn_it_is_the_deterministic_sampler_bit_for_bit(vectors):
    sampler, main, _ = vectors
    noise, draws = sampler["noise_unit"], []

    def draw():
        draws.append(noise)
        return noise

    settings = SamplerSettings(int(sampler["num_steps"]), **{**IMAGENET, "s_churn": 0})
    images = edm_sample(main, draw, settings)
    assert len(draws) == 1
    assert torch.equal(images, heun_sample(main, noise, settings.steps))


def test_churned_gaussian_data_keep_their_moments_and_forget_their_noise():
    mean, s, denoise = gaussian()
    stream = torch.Generator().manual_seed(0)
    drawn = []

    def draw():
        drawn.append(torch.randn(8192, 1, 1, 1, generator=stream))
        return drawn[-1]

    images = edm_sample(denoise, draw, SamplerSettings(256, s_churn=40))
    assert images.mean().item() == pytest.approx(mean, abs=5 * s / 8192**0.5)
    assert images.std().item() == pytest.approx(s, abs=5 * s / (2 * 8192) ** 0.5)
    assert len(drawn) == 1 + 256

    def correlation(images):
        return np.corrcoef(images.flatten(), drawn[0].flatten())[0, 1]

    assert correlation(heun_sample(denoise, drawn[0], 256)) > 0.999
    assert abs(correlation(images)) < 0.1


def test_noise_is_added_only_between_its_limits():
    _, _, denoise = gaussian()
    draws, seen = cycle([torch.ones(1, 1, 1, 1)]), []

    def watched(x, sigma):
        seen.append(float(sigma))
        return denoise(x, sigma)

    settings = SamplerSettings(18, s_churn=3.6, s_min=0.05, s_max=50)
    edm_sample(watched, lambda: next(draws), settings)
    levels = settings.levels()[:-1].tolist()
    raised = [level * (1.2 if 0.05 <= level <= 50 else 1) for level in levels]
    assert 0 < raised.count(levels[0]) < len(levels)
    assert seen[::2] == pytest.approx(raised)
    assert seen[1::2] == pytest.approx(levels[1:])


@pytest.mark.parametrize(("steps", "evaluations"), [(18, 35), (40, 79), (256, 511)])
def test_published_numbers_of_steps_take_the_published_evaluations(steps, evaluations):
    assert SamplerSettings(steps).evaluations == evaluations


def test_guidance_extrapolates_from_the_guide():
    def main(x, sigma):
        return torch.full_like(x, 2.0)

    def guide(x, sigma):
        return torch.full_like(x, 1.0)

    x, sigma = torch.zeros(1, 1, 1, 1), torch.tensor(1.0)
    assert guided(main, guide, 3.0)(x, sigma).item() == pytest.approx(4.0)
    assert guided(main, guide, 1.0) is main


def test_schedule_runs_from_highest_to_zero():
    sigmas = SamplerSettings(18).levels()
    assert sigmas.shape == (19,)
    assert sigmas[0].item() == pytest.approx(80)
    assert sigmas[-2].item() == pytest.approx(0.002)
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("evaluations", [0, 1, 2, 64])
def test_refuses_impossible_numbers_of_evaluations(evaluations):
    with pytest.raises(ValueError, match="odd number"):
        steps_for(evaluations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "steps 1: the sampler takes two or more"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max is needed, not 0.0, 80.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": math.inf}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": math.nan}, "0 < sigma_min < sigma_max"),
        ({"rho": 0.0}, "rho 0.0: a finite number above 0"),
        ({"rho": 0.001}, "rho 0.001: the levels"),
        ({"rho": 1e18}, "rho 1e.18: the levels"),
        ({"s_churn": -1.0}, "s_churn -1.0: a finite number, not below 0"),
        ({"s_churn": math.nan}, "s_churn nan"),
        ({"s_noise": math.inf}, "s_noise inf"),
        ({"s_min": 2.0, "s_max": 1.0}, "0 <= s_min <= s_max is needed, not 2.0, 1.0"),
        ({"s_min": math.nan}, "0 <= s_min <= s_max"),
    ],
)
def test_refuses_settings_that_make_no_images(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**{"steps": 8, **settings})
