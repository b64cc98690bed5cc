"""The two losses of SiD and SiDA as functions of networks, images and explicit random draws.

SiD is arXiv 2404.04057, SiDA and SiD2A arXiv 2410.14919. No batch, method or run is known here, so
recorded draws can be put through them. The mathematics is in `losses.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sid_scale.diffusion.few_step import denoised
from sid_scale.methods import Loss
from sid_scale.methods.losses import (
    DIVERGENCES,
    channel_mean,
    denoising_loss,
    denoising_weight,
    density_ratio,
    discriminator_loss,
    effective_share,
    generator_adversarial_loss,
    kl_loss,
    sid_loss,
    sid_normalizer,
)
from sid_scale.methods.settings import SiDObjective
from sid_scale.networks.denoiser import Denoise, Prediction

DEEPEST = (-1,)  # the encoder feature whose channel mean is SiDA's map of logits


def fake_score_loss(
    fake_score: Denoise,
    images: Tensor,
    real: Tensor | None,
    condition: Tensor | None,
    sigma: Tensor,
    noise: Tensor,
    objective: SiDObjective,
    sigma_data: float,
    augment_labels: Tensor | None = None,
) -> Loss:
    """Denoising loss on generated images; with real images also the discriminator's.

    Real and generated images meet the discriminator at the same sigma, noise and condition.

    Args:
        fake_score: the network in training.
        images: generated, (N, C, H, W), without gradient.
        real: (N, C, H, W), or None for no discriminator.
        condition: (N,) class indices, or None.
        sigma: (N, 1, 1, 1).
        noise: unit normal, (N, C, H, W).
        augment_labels: how the images, and after them the real ones, were augmented, (N, 9) or
            (2N, 9); None: not at all.
    """
    # What the generator makes and, in SiDA, real images go through the encoder as one batch, at
    # the same noise; only the former are denoised.
    noised, noised_condition, sigmas = images + sigma * noise, condition, sigma
    if real is not None:
        noised = torch.cat([noised, real + sigma * noise])
        noised_condition = None if condition is None else condition.repeat(2)
        sigmas = sigma.repeat(2, 1, 1, 1)
    wanted = () if real is None else DEEPEST
    # Networks that take no such labels lack the argument.
    labels = {} if augment_labels is None else {"augment_labels": augment_labels}
    prediction = fake_score(
        noised, sigmas, noised_condition, features=wanted, decoded=len(images), **labels
    )

    # Denoising score matching (EDM2, Eq. 21).
    weight = denoising_weight(sigma, sigma_data)
    logvar = _logvar(prediction, sigmas, objective)[: len(images)]
    denoising = denoising_loss(denoised(prediction), images, weight, logvar)  # (N, C, H, W)
    total = denoising.sum() / len(images)
    terms = {"loss/fake_score": total.detach()}
    if real is None:
        return Loss(total, terms)

    # SiDA's discriminator: the encoder's map of logits, towards real or generated.
    logits_generated, logits_real = channel_mean(prediction.features[0]).chunk(2)
    discriminator = discriminator_loss(
        logits_generated,
        logits_real,
        weight,
        logvar,
        objective.adversarial_group,
        objective.discriminator_logit_limit,
    )
    discriminator = objective.loss_scale_discriminator * discriminator.mean()
    terms["loss/discriminator"] = discriminator.detach()
    terms["logits/generated"] = logits_generated.detach().mean()
    terms["logits/real"] = logits_real.detach().mean()
    return Loss(total + discriminator, terms)


def generator_loss(
    teacher: Denoise,
    fake_score: Denoise,
    images: Tensor,
    condition: Tensor | None,
    sigma: Tensor,
    noise: Tensor,
    objective: SiDObjective,
    *,
    adversarial: bool,
    of_whole_batch: Callable[[Tensor], Tensor] = lambda ratios: ratios,
) -> Loss:
    """SiD's loss on generated images; when `adversarial`, mixed with SiDA's.

    Args:
        teacher: frozen; gradients flow through it into the images, as through `fake_score`, unless
            the KL divergence's gradient is asked for.
        images: generated, (N, C, H, W), with gradient.
        condition: (N,) class indices, or None.
        sigma: (N, 1, 1, 1).
        noise: unit normal, (N, C, H, W).
        of_whole_batch: see `MicroBatch`; of the samples' density ratios.
    """
    noisy = images + sigma * noise
    y_real, prediction = _scores(
        teacher, fake_score, noisy, sigma, condition, objective, adversarial=adversarial
    )
    y_fake, logvar = denoised(prediction), _logvar(prediction, sigma, objective)
    w = sid_normalizer(images, y_real)

    # Score identity loss (SiD, Eqs. 23 and 24), or the KL divergence's.
    if objective.gradient == "kl":
        elements = kl_loss(images, y_real, y_fake, w, logvar)
    else:
        elements = sid_loss(images, y_real, y_fake, w, logvar, objective.alpha)
    by_sigma = {"sid_loss": (sigma, elements.detach().mean(dim=(1, 2, 3)))}
    if not adversarial:
        score = objective.loss_scale_generator * elements.sum() / len(images)
        return Loss(score, {"loss/generator_sid": score.detach()}, by_sigma)

    # Samples weighed by the discriminator's density ratio (Uni-Instruct; f-distill).
    logits = channel_mean(prediction.features[0])
    elements, ratios = _weighted(elements, density_ratio(logits), of_whole_batch, objective)
    score = objective.loss_scale_generator * elements.sum() / len(images)

    # SiDA's adversarial term: the generated should look real, at the same w.
    gan = generator_adversarial_loss(logits, w, logvar, objective.adversarial_group)
    gan = objective.loss_scale_generator_gan * images[0].numel() * gan.mean()
    total = objective.sid_share * score + (1 - objective.sid_share) * gan
    terms = {"loss/generator_sid": score.detach(), "loss/generator_gan": gan.detach()}
    return Loss(total, terms | ratios, by_sigma)


def _scores(
    teacher: Denoise,
    fake_score: Denoise,
    noisy: Tensor,
    sigma: Tensor,
    condition: Tensor | None,
    objective: SiDObjective,
    *,
    adversarial: bool,
) -> tuple[Tensor, Prediction]:
    """What teacher and fake score make of noised images; with the deepest feature of the latter
    where its encoder is the discriminator."""
    wanted = DEEPEST if adversarial else ()
    if objective.gradient == "sid":
        y_real = denoised(teacher(noisy, sigma, condition))
        return y_real, fake_score(noisy, sigma, condition, features=wanted)
    with torch.no_grad():
        y_real = denoised(teacher(noisy, sigma, condition))
        prediction = fake_score(noisy, sigma, condition)
    if adversarial:
        # Once more through the encoder, with gradient: the decoder's activations are never kept.
        encoded = fake_score(noisy, sigma, condition, features=wanted, decoded=0)
        prediction = prediction._replace(features=encoded.features)
    return y_real, prediction


def _weighted(
    elements: Tensor,
    ratio: Tensor,
    of_whole_batch: Callable[[Tensor], Tensor],
    objective: SiDObjective,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss (N, C, H, W) whose samples are weighed by their density ratios (N,), with a mean
    weight of 1 over the whole batch; and what logs show of all ratios."""
    if objective.divergence == "reverse_kl":
        return elements, {}
    weight, ratios = DIVERGENCES[objective.divergence], of_whole_batch(ratio)
    weights = weight(ratios)
    shown = {
        "density_ratio/min": ratios.min(),
        "density_ratio/mean": ratios.mean(),
        "density_ratio/max": ratios.max(),
        "density_ratio/effective_share": effective_share(weights),
    }
    return (weight(ratio) / weights.mean())[:, None, None, None] * elements, shown


def discriminator_logits(
    fake_score: Denoise, noisy: Tensor, sigma: Tensor, condition: Tensor | None
) -> Tensor:
    """The map of logits of noised images (N, C, H, W), by the encoder alone: (N, 1, h, w)."""
    encoded = fake_score(noisy, sigma, condition, features=DEEPEST, decoded=0)
    return channel_mean(encoded.features[0])


def _logvar(prediction: Prediction, sigma: Tensor, objective: SiDObjective) -> Tensor:
    """The fake score's logvar (N, 1, 1, 1), or zeros with logvar weighting switched off."""
    if prediction.logvar is None or not objective.logvar_weighting:
        return torch.zeros_like(sigma)
    return prediction.logvar
