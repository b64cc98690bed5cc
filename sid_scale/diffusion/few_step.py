"""How a generator makes images from noise, in one step or a few."""

from collections.abc import Callable

import torch
from torch import Tensor

from sid_scale.networks.edm2.network import Prediction

# (x (N, C, H, W), sigma, one-hot labels (N, L), encoder_only=...) -> Prediction
Denoiser = Callable[..., Prediction]


def generate(
    generator: Denoiser,
    latent: Tensor,
    between: Tensor,
    labels: Tensor,
    init_sigma: float,
    last_step: int | None = None,
) -> Tensor:
    """The images of a generator of K = len(between) + 1 steps, (N, C, H, W).

    Step k denoises at sigma init_sigma (K - k) / K, k = 0 ... K - 1, and fresh noise of the
    next sigma is added between. Training looks at what comes out of any step, `last_step`.
    Gradients flow through that one alone.

    Args:
        generator: a denoising network.
        latent: unit normal, (N, C, H, W): what the first step starts from.
        between: unit normal, (K-1, N, C, H, W): added between the steps.
        labels: one-hot, (N, L).
        init_sigma: noise level of the first step.
    """
    steps = len(between) + 1
    last_step = steps - 1 if last_step is None else last_step
    x = init_sigma * latent
    for k in range(last_step + 1):
        sigma = torch.full((len(x),), init_sigma * (steps - k) / steps, device=x.device)
        if k > 0:
            x = x + sigma[:, None, None, None] * between[k - 1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and k == last_step):
            x = denoised(generator(x, sigma, labels))
    return x


def denoised(prediction: Prediction) -> Tensor:
    """The images in a prediction, which only `encoder_only` passes leave out."""
    assert prediction.denoised is not None
    return prediction.denoised
