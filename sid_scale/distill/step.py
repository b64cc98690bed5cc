"""One iteration: the fake score learns from the generator, then the generator from both.

The two losses are functions of networks, data and explicit random draws; they know nothing of
ranks, engines or accumulation, so recorded draws can be put through them as they are.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sid_scale.config.groups import ObjectiveConfig
from sid_scale.data.labels import LabelBatch
from sid_scale.data.stream import Batch
from sid_scale.diffusion.few_step import Denoiser, denoised, generate
from sid_scale.diffusion.noise import KeyedNoise, fake_score_sigma, generator_sigma, keyed_seed
from sid_scale.distill.build import Run
from sid_scale.distill.meter import Meter
from sid_scale.methods.losses import (
    denoising_loss,
    denoising_weight,
    discriminator_loss,
    generator_adversarial_loss,
    sid_loss,
    sid_weight,
)
from sid_scale.networks.edm2.network import Prediction


class Draws(NamedTuple):
    """All that is random in one loss, for one micro-batch."""

    latent: Tensor  # (N, C, H, W) unit normal: what the generator starts from
    between: Tensor  # (K-1, N, C, H, W) unit normal: added between the generator's steps
    level: Tensor  # (N, 1, 1, 1) picks sigma: uniform (generator) or normal (fake score)
    noise: Tensor  # (N, C, H, W) unit normal: noises the image

    @classmethod
    def for_generator(cls, noise: KeyedNoise, shape: tuple[int, ...], steps: int) -> "Draws":
        """Draws of the generator's loss; `shape` is (C, H, W)."""
        latent, between = cls._inputs(noise, shape, steps)
        return cls(latent, between, noise.uniform(1, 1, 1), noise.normal(*shape))

    @classmethod
    def for_fake_score(cls, noise: KeyedNoise, shape: tuple[int, ...], steps: int) -> "Draws":
        """Draws of the fake score's loss; `shape` is (C, H, W)."""
        latent, between = cls._inputs(noise, shape, steps)
        return cls(latent, between, noise.normal(1, 1, 1), noise.normal(*shape))

    @staticmethod
    def _inputs(noise: KeyedNoise, shape: tuple[int, ...], steps: int) -> tuple[Tensor, Tensor]:
        return noise.normal(*shape), noise.normal(steps - 1, *shape).transpose(0, 1)


class Loss(NamedTuple):
    """A loss to backpropagate and what to tell about it (all detached but `total`)."""

    total: Tensor  # scalar
    terms: dict[str, Tensor]  # name -> scalar, as the published runs report them
    sigma: Tensor  # (N, 1, 1, 1)
    per_sample: Tensor  # (N,) the score term of `total`, before scaling
    logits: dict[str, Tensor]  # "real", "generated" -> scalar mean of the encoder map


def fake_score_loss(
    fake_score: Denoiser,
    images: Tensor,
    real: Tensor | None,
    labels: Tensor,
    draws: Draws,
    objective: ObjectiveConfig,
    sigma_data: float,
) -> Loss:
    """Denoising loss on generated `images`; with `real` images also the discriminator's.

    Real and generated images meet the discriminator at the same sigma, noise and label.
    """
    sigma = fake_score_sigma(draws.level, objective.p_mean, objective.p_std)
    noise = sigma * draws.noise
    weight = denoising_weight(sigma, sigma_data)
    prediction = fake_score(images + noise, sigma, labels)
    logvar = _logvar(prediction, objective)
    denoising = denoising_loss(denoised(prediction), images, weight, logvar)  # (N, C, H, W)
    total = denoising.sum() / len(images)
    terms = {"fake_score": total.detach()}
    logits = {"generated": prediction.encoder_logits.detach().mean()}
    if real is not None:
        on_real = fake_score(real + noise, sigma, labels, encoder_only=True)
        discriminator = (
            objective.loss_scale_discriminator
            * discriminator_loss(
                prediction.encoder_logits, on_real.encoder_logits, weight, logvar
            ).mean()
        )
        total = total + discriminator
        terms["discriminator"] = discriminator.detach()
        logits["real"] = on_real.encoder_logits.detach().mean()
    return Loss(total, terms, sigma, denoising.detach().mean(dim=(1, 2, 3)), logits)


def generator_loss(
    teacher: Denoiser,
    fake_score: Denoiser,
    images: Tensor,
    labels: Tensor,
    draws: Draws,
    objective: ObjectiveConfig,
    *,
    adversarial: bool,
) -> Loss:
    """SiD's loss on generated `images`, half of it with half of SiDA's when `adversarial`."""
    sigma = generator_sigma(draws.level, objective.tmax)
    noisy = images + sigma * draws.noise
    y_real = denoised(teacher(noisy, sigma, labels))
    prediction = fake_score(noisy, sigma, labels)
    logvar = _logvar(prediction, objective)
    weight = sid_weight(images, y_real)
    elements = sid_loss(
        images, y_real, denoised(prediction), weight, logvar, objective.alpha
    )  # (N, C, H, W)
    score = objective.loss_scale_generator * elements.sum() / len(images)
    total, terms = score, {"generator_sid": score.detach()}
    if adversarial:
        gan = generator_adversarial_loss(prediction.encoder_logits, weight, logvar)
        gan = objective.loss_scale_generator_gan * images[0].numel() * gan.mean()
        total = objective.sid_share * score + (1 - objective.sid_share) * gan
        terms["generator_gan"] = gan.detach()
    return Loss(total, terms, sigma, elements.detach().mean(dim=(1, 2, 3)), {})


def _logvar(prediction: Prediction, objective: ObjectiveConfig) -> Tensor:
    """The fake score's logvar, or zeros with logvar weighting switched off."""
    if prediction.logvar is None or not objective.logvar_weighting:
        return prediction.encoder_logits.new_zeros(len(prediction.encoder_logits), 1, 1, 1)
    return prediction.logvar


# --- one update of each network -----------------------------------------------------------


def update_fake_score(run: Run, data: Iterator[Batch | LabelBatch], meter: Meter) -> bool:
    """The fake score learns what the generator now makes. Collective.

    -> False if the update was skipped for a non-finite gradient.
    """
    finite = True
    for _ in range(run.accumulation):
        batch = next(data)
        _seed_dropout(run, "fake_score", batch.index)
        noise = KeyedNoise(run.config.seed, "fake_score", batch.index, run.ranks.device)
        draws = Draws.for_fake_score(noise, run.image_shape, run.config.steps)
        real = None
        if isinstance(batch, Batch):
            run.progress.skipped_samples += batch.skipped
            stored = batch.stored.to(run.ranks.device, non_blocking=True)
            real = run.codec.sample(stored, noise.normal(*run.image_shape))
        labels = run.one_hot(batch.labels)
        with torch.no_grad():
            images = _images(run, run.generator.module, draws, labels)
        loss = fake_score_loss(
            run.fake_score,
            images,
            real,
            labels,
            draws,
            run.config.objective,
            run.teacher.config.sigma_data,
        )
        run.fake_score.backward(loss.total)
        finite = run.fake_score.step()
        _tell(meter, loss)
    meter.add("grad_norm/fake_score", run.fake_score.grad_norm)
    return finite


def update_generator(run: Run, labels_stream: Iterator[LabelBatch], meter: Meter) -> bool:
    """The generator learns from teacher and fake score. Collective.

    -> False if the update was skipped for a non-finite gradient.
    """
    finite = True
    adversarial = run.config.is_adversarial(run.progress.images_seen)
    for _ in range(run.accumulation):
        batch = next(labels_stream)
        _seed_dropout(run, "generator", batch.index)
        noise = KeyedNoise(run.config.seed, "generator", batch.index, run.ranks.device)
        draws = Draws.for_generator(noise, run.image_shape, run.config.steps)
        labels = run.one_hot(batch.labels)
        images = _images(run, run.generator, draws, labels)
        with run.fake_score.frozen() as fake_score:
            loss = generator_loss(
                run.teacher,
                fake_score,
                images,
                labels,
                draws,
                run.config.objective,
                adversarial=adversarial,
            )
            run.generator.backward(loss.total)
        finite = run.generator.step()
        _tell(meter, loss)
        meter.add_by_sigma("sid_loss", loss.sigma, loss.per_sample)
    meter.add("grad_norm/generator", run.generator.grad_norm)
    return finite


def _images(run: Run, generator: Denoiser, draws: Draws, labels: Tensor) -> Tensor:
    """Generated images, of a few-step generator after a step drawn anew for each update.

    All ranks and micro-batches take the same one: each forward is collective.
    """
    seed = keyed_seed(run.config.seed, "last step", run.progress.images_seen)
    last_step = seed % run.config.steps
    return generate(
        generator,
        draws.latent,
        draws.between,
        labels,
        run.config.objective.init_sigma,
        last_step,
    )


def _seed_dropout(run: Run, purpose: str, samples: Tensor) -> None:
    """Makes dropout a function of the micro-batch, whichever rank holds it."""
    torch.manual_seed(keyed_seed(run.config.seed, f"{purpose} dropout", int(samples[0])))


def _tell(meter: Meter, loss: Loss) -> None:
    for name, value in loss.terms.items():
        meter.add(f"loss/{name}", value)
    for name, value in loss.logits.items():
        meter.add(f"logits/{name}", value)
