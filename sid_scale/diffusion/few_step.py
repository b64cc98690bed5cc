"""How a generator makes images from noise, in one step or a few."""

import torch
from torch import Tensor

from sid_scale.diffusion.noise import SeededNoise
from sid_scale.networks.denoiser import Denoise, Prediction


def generate(
    generator: Denoise,
    z: Tensor,
    step_noise: Tensor,
    condition: Tensor | None,
    init_sigma: float,
    last_step: int | None = None,
) -> Tensor:
    """The images of a generator of K = len(step_noise) + 1 steps, (N, C, H, W).

    Step k denoises at sigma init_sigma (K - k) / K, k = 0 ... K - 1, and fresh noise of the
    next sigma is added between. Training looks at what comes out of any step, `last_step`.
    Gradients flow through that one alone.

    Args:
        generator: a denoising network.
        z: unit normal, (N, C, H, W): what the first step starts from.
        step_noise: unit normal, (K-1, N, C, H, W): added between the steps.
        condition: class indices (N,), or None.
        init_sigma: noise level of the first step.
    """
    steps = len(step_noise) + 1
    last_step = steps - 1 if last_step is None else last_step
    x = init_sigma * z
    for k in range(last_step + 1):
        sigma = torch.full((len(x),), init_sigma * (steps - k) / steps, device=x.device)
        if k > 0:
            x = x + sigma[:, None, None, None] * step_noise[k - 1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and k == last_step):
            x = denoised(generator(x, sigma, condition))
    return x


def generator_inputs(
    z: SeededNoise, step_noise: SeededNoise, shape: tuple[int, int, int], steps: int
) -> tuple[Tensor, Tensor]:
    """What `generate` starts from and adds between `steps` steps, for images of `shape` (C, H, W).

    -> (N, C, H, W), drawn first, and (steps - 1, N, C, H, W).
    """
    start = z.normal(*shape)
    return start, step_noise.normal(steps - 1, *shape).transpose(0, 1)


def denoised(prediction: Prediction) -> Tensor:
    """The images in a prediction, which only passes without `decode` leave out."""
    assert prediction.denoised is not None
    return prediction.denoised
