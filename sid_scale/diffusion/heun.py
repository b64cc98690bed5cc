"""EDM's deterministic sampler: how a teacher makes images, for comparison with its student.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(arXiv 2206.00364), Algorithm 1 with the schedule of Eq. 5. The state stays float32, as in
EDM2's published figures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sid_scale.diffusion.sigma import RHO, SIGMA_MAX, SIGMA_MIN, karras_ramp
from sid_scale.networks.denoiser import Denoiser

Denoise = Callable[[Tensor, Tensor], Tensor]  # x (N, C, H, W), sigma [] -> denoised like x


def denoiser(network: Denoiser, condition: Tensor | None = None) -> Denoise:
    """`network` as a function of x and sigma alone; `condition` is class indices (N,), or None."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = network(x, sigma, condition).denoised
        assert denoised is not None  # only passes without `decode` leave it out
        return denoised

    return denoise


def guided(main: Denoise, guide: Denoise, weight: float) -> Denoise:
    """Extrapolates from `guide` through `main`: guide + weight (main - guide).

    With an unconditional guide this is classifier-free guidance, with a lesser network
    autoguidance (arXiv 2406.02507, Eq. 3). Weight 1 is `main` alone, and the guide is then
    not evaluated.
    """
    if weight == 1:
        return main
    return lambda x, sigma: guide(x, sigma).lerp(main(x, sigma), weight)


def sigma_schedule(
    steps: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise levels from `sigma_max` down to `sigma_min`, then 0 (Eq. 5): float32 (steps + 1,).

    Raises:
        ValueError: fewer than two steps, or levels out of order.
    """
    if steps < 2:
        raise ValueError(f"the sampler needs two steps or more, not {steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"0 < sigma_min < sigma_max is needed, not {sigma_min}, {sigma_max}")
    down = 1 - torch.arange(steps, dtype=torch.float32, device=device) / (steps - 1)
    sigmas = karras_ramp(down, sigma_min, sigma_max, rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def steps_for(evaluations: int) -> int:
    """Steps that take this many network evaluations: 17, 35, 63 -> 9, 18, 32.

    Raises:
        ValueError: no number of steps takes as many.
    """
    if evaluations < 3 or evaluations % 2 == 0:
        raise ValueError(
            f"Heun's method takes an odd number of evaluations, 3 or more, not {evaluations}"
        )
    return (evaluations + 1) // 2


@torch.no_grad()
def heun_sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """Integrates the probability-flow ODE from noise to images with Heun's method.

    Each step costs two evaluations of `denoise`, the last, which ends at sigma 0, one:
    2 steps - 1 in all.

    Args:
        denoise: D(x, sigma), see `denoiser` and `guided`.
        noise: unit Gaussian noise (N, C, H, W).
        steps: two or more.

    Returns:
        images or latents (N, C, H, W), float32.
    """
    sigmas = sigma_schedule(steps, sigma_min, sigma_max, rho, noise.device)
    x = noise.float() * sigmas[0]
    for index in range(steps):
        sigma, lower = sigmas[index], sigmas[index + 1]
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (lower - sigma) * slope
        if index < steps - 1:
            slope_ahead = (ahead - denoise(ahead, lower)) / lower
            ahead = x + (lower - sigma) * (slope + slope_ahead) / 2
        x = ahead
    return x
