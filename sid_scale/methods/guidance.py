"""A denoiser that is guided by a lesser one.

With a smaller or less trained guide this is autoguidance (arXiv 2406.02507, Eq. 3), with an
unconditional one classifier-free guidance (arXiv 2207.12598). Both are usually for sampling. Here
the guided teacher is what the generator learns from; guidance of the fake score as well is that of
SiD-LSG (arXiv 2406.01561).
"""

from typing import Any

import torch
from torch import Tensor

from sid_scale.diffusion.few_step import denoised
from sid_scale.networks.denoiser import Denoise, Prediction


def guided(
    network: Denoise, guide: Denoise, weight: float, interval: tuple[float, float] | None = None
) -> Denoise:
    """Extrapolates from `guide` through `network`: guide + weight (network - guide).

    Uncertainty and features are those of `network`. Gradients flow through both.

    Args:
        weight: 1 is `network` alone.
        interval: lowest and highest sigma at which there is guidance (arXiv 2404.07724); None: all.
    """

    def denoise(
        x: Tensor, sigma: Tensor, condition: Tensor | None = None, **options: Any
    ) -> Prediction:
        prediction = network(x, sigma, condition, **options)
        if prediction.denoised is None:
            return prediction
        # The guide has no need of samples that only the encoder of `network` looks at.
        n = len(prediction.denoised)
        sigma = sigma.reshape(-1, 1, 1, 1)[:n]
        labels = options.get("augment_labels")
        given = {} if labels is None else {"augment_labels": labels[:n]}
        condition = None if condition is None else condition[:n]
        base = denoised(guide(x[:n], sigma, condition, **given))
        weights = torch.full_like(sigma, weight)
        if interval is not None:
            low, high = interval
            weights = torch.where((sigma >= low) & (sigma <= high), weights, 1.0)
        return prediction._replace(denoised=torch.lerp(base, prediction.denoised, weights))

    return denoise
