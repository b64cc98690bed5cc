"""The losses of SiD and SiDA, and what came after them, as pure functions of tensors.

SiD is arXiv 2404.04057, SiDA arXiv 2410.14919. Everywhere: `images` are the generator's clean
outputs or real data (N, C, H, W); `y_real` and `y_fake` what teacher and fake score make of
their noised form; `logits` the fake score's encoder map (N, 1, h, w), whose sign says 'real'
or 'generated'; `sigma`, `w`, `weight` and `logvar` are (N, 1, 1, 1). All float32. `weight` is
lambda(sigma), which multiplies; `w` is SiD's normalizer, which divides.

A loss with `logvar` is divided by exp(logvar), the fake score's own estimate of how large its
error is at this noise level (EDM2, arXiv 2312.02696, Eq. 21); pass zeros to switch that off.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_LIMIT = 10.0  # beyond it the discriminator gives the generator no gradient
SMALLEST_NORMALIZER = 1e-5
RATIO_LIMITS = (0.1, 20.0)  # of a density ratio that weighs a sample

# Divergence -> weight of a sample with density ratio r = p_data / p_generator, before weights are
# brought to a mean of 1 (arXiv 2505.20755; arXiv 2502.15681, Table 1).
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda ratio: ratio,
    "jeffreys": lambda ratio: 0.6 + 0.4 * ratio,
    "jensen_shannon": lambda ratio: ratio / (1 + ratio),
}


def channel_mean(feature: Tensor) -> Tensor:
    """SiDA's map of logits: the mean over the channels of an encoder feature.

    (N, c, h, w) of any dtype -> (N, 1, h, w) float32.
    """
    return feature.float().mean(dim=1, keepdim=True)


def sid_normalizer(images: Tensor, y_real: Tensor) -> Tensor:
    """w: how far the teacher is from the image, mean over C, H, W; no gradient (SiD, Eq. 24).

    -> (N, 1, 1, 1), at least 1e-5.
    """
    distance = (images - y_real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    return distance.clip(min=SMALLEST_NORMALIZER)


def sid_loss(
    images: Tensor, y_real: Tensor, y_fake: Tensor, w: Tensor, logvar: Tensor, alpha: float
) -> Tensor:
    """The generator's score identity loss (SiD, Eqs. 23 and 24), per element (N, C, H, W).

    Gradients are meant to flow through all three: image, teacher and fake score.
    """
    gap = y_real - y_fake
    return gap * ((y_real - images) - alpha * gap) / w / logvar.exp()


def kl_loss(images: Tensor, y_real: Tensor, y_fake: Tensor, w: Tensor, logvar: Tensor) -> Tensor:
    """A loss whose gradient in the image is (y_fake - y_real) / w / exp(logvar), per element
    (N, C, H, W): that of the KL divergence of the noised distributions (VSD; DMD2, arXiv
    2405.14867, Eqs. 1 and 2), at SiD's weights.

    No gradient flows through teacher and fake score.
    """
    target = (images - (y_fake - y_real) / w).detach()
    return 0.5 * (images - target) ** 2 / logvar.detach().exp()


def density_ratio(logits: Tensor) -> Tensor:
    """r: how much denser real images are than generated ones at each sample, (N,), in
    [0.1, 20]; no gradient.

    The logit of a discriminator is an estimate of the log of that; the sample's is the map's mean.
    """
    mean = logits.detach().mean(dim=(1, 2, 3)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    return mean.exp().clamp(*RATIO_LIMITS)


def effective_share(weights: Tensor) -> Tensor:
    """Share of (B,) weighted samples that as many equally weighted ones would make up, in (0, 1]:
    (sum w)^2 / (B sum w^2) (Kish's effective sample size)."""
    return weights.mean() ** 2 / weights.square().mean()


def generator_adversarial_loss(
    logits: Tensor, w: Tensor, logvar: Tensor, group: int | None = None
) -> Tensor:
    """SiDA's adversarial loss: the generated should look real, per sample (N, 1, 1, 1).

    The cross-entropy is a mean over `group` consecutive samples; None: over all N.
    """
    entropy = _cross_entropy_real(logits, LOGIT_LIMIT)
    return _group_means(entropy, group) / w / logvar.exp()


def denoising_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's loss weight lambda(sigma) (arXiv 2206.00364, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(denoised: Tensor, images: Tensor, weight: Tensor, logvar: Tensor) -> Tensor:
    """The fake score's denoising loss on generated images (EDM2, Eq. 21), (N, C, H, W)."""
    return weight * (denoised - images) ** 2 / logvar.exp() + logvar


def discriminator_loss(
    logits_generated: Tensor,
    logits_real: Tensor,
    weight: Tensor,
    logvar: Tensor,
    group: int | None = None,
    logit_limit: float | None = LOGIT_LIMIT,
) -> Tensor:
    """SiDA's discriminator loss at the denoising loss's weight, per sample (N, 1, 1, 1).

    Both maps come from the same sigma and the same noise; the cross-entropies are means over
    `group` consecutive samples; None: over all N. Logits beyond `logit_limit` have no gradient.
    """
    limit = math.inf if logit_limit is None else logit_limit
    generated = _cross_entropy_generated(logits_generated, limit)
    entropy = generated + _cross_entropy_real(logits_real, limit)
    return 0.5 * weight * _group_means(entropy, group) / logvar.exp()


def _cross_entropy_real(logits: Tensor, limit: float) -> Tensor:
    return F.softplus(-logits.clamp(-limit, limit))


def _cross_entropy_generated(logits: Tensor, limit: float) -> Tensor:
    return F.softplus(logits.clamp(-limit, limit))


def _group_means(values: Tensor, group: int | None) -> Tensor:
    """At each sample the mean over its group of consecutive samples, (N, ...) -> (N, 1, 1, 1)."""
    samples = len(values)
    size = group or samples
    means = values.reshape(samples // size, -1).mean(dim=1)
    return means.repeat_interleave(size).reshape(samples, 1, 1, 1)
