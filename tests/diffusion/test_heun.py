"""EDM's Heun sampler: against the published implementation, and against the exact solution."""

from pathlib import Path

import pytest
import torch

from sid_scale.diffusion.heun import (
    denoiser,
    guided,
    heun_sample,
    sigma_schedule,
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
    mean, s = 0.3, 0.5

    def denoise(x, sigma):
        return (sigma**2 * mean + s**2 * x) / (sigma**2 + s**2)

    noise = torch.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    images = heun_sample(denoise, noise, 128)
    exact = mean + (80.0 * noise - mean) * s / (80.0**2 + s**2) ** 0.5
    torch.testing.assert_close(images, exact, atol=2e-3, rtol=0)
    coarse = heun_sample(denoise, noise, 16)
    assert (coarse - exact).abs().max() > (images - exact).abs().max()


def test_guidance_extrapolates_from_the_guide():
    def main(x, sigma):
        return torch.full_like(x, 2.0)

    def guide(x, sigma):
        return torch.full_like(x, 1.0)

    x, sigma = torch.zeros(1, 1, 1, 1), torch.tensor(1.0)
    assert guided(main, guide, 3.0)(x, sigma).item() == pytest.approx(4.0)
    assert guided(main, guide, 1.0) is main


def test_schedule_runs_from_highest_to_zero():
    sigmas = sigma_schedule(18)
    assert sigmas.shape == (19,)
    assert sigmas.dtype == torch.float32
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("evaluations", [0, 1, 2, 64])
def test_refuses_impossible_numbers_of_evaluations(evaluations):
    with pytest.raises(ValueError, match="odd number"):
        steps_for(evaluations)


@pytest.mark.parametrize(
    ("steps", "sigma_min", "sigma_max"), [(1, 0.002, 80.0), (8, 0.0, 80.0), (8, 2.0, 1.0)]
)
def test_refuses_impossible_schedules(steps, sigma_min, sigma_max):
    with pytest.raises(ValueError, match=r"needed|needs"):
        sigma_schedule(steps, sigma_min, sigma_max)
