"""SiD, SiDA and SiD2A: score identity distillation, with an adversarial branch on real data.

SiD is arXiv 2404.04057, SiDA and SiD2A (SiDA from a generator that SiD made) arXiv 2410.14919.
Two networks learn in turns. The fake score learns to denoise what the generator makes at the
moment, and in SiDA to tell it from real images. The generator learns from where teacher and fake
score, given the same noised image, disagree.

Options came after these papers: the KL divergence's gradient in place of SiD's, weights by the
density ratio that the discriminator estimates, a guided teacher. docs/methods.md has their sources.

The two losses are in `sid_losses.py`; what each is given is decided here.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sid_scale.config.run import RunConfig
from sid_scale.diffusion.augment import LABELS as AUGMENT_LABELS
from sid_scale.diffusion.augment import augment, draw_augmentation
from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.diffusion.sigma import generator_sigma, lognormal_sigma
from sid_scale.errors import SidScaleError
from sid_scale.methods import (
    GENERATOR,
    TEACHER,
    Loss,
    Method,
    MicroBatch,
    Networks,
    Role,
    Update,
    generator_role,
    headless,
)
from sid_scale.methods.guidance import guided
from sid_scale.methods.losses import density_ratio
from sid_scale.methods.settings import SiDObjective
from sid_scale.methods.sid_losses import discriminator_logits, fake_score_loss, generator_loss
from sid_scale.networks import Architecture
from sid_scale.networks.denoiser import Denoise

FAKE_SCORE = "fake_score"
GUIDE = "guide"  # the frozen network that the teacher is guided by


class MethodError(SidScaleError):
    """A method that cannot work with a teacher; the message says why and what to set."""


class SiD(Method):
    """Score identity distillation: the teacher and labels alone, no real data."""

    adversarial = False

    def __init__(self, config: RunConfig, teacher: Architecture):
        self.objective: SiDObjective = config.objective
        self._config, self._sigma_data = config, teacher.sigma_data
        if self.objective.logvar_weighting and teacher == teacher.headless():
            raise MethodError(
                f"teacher {config.teacher} has no uncertainty head: set "
                "objective.logvar_weighting to false"
            )
        if self.objective.augmentation and teacher.augment_dim != AUGMENT_LABELS:
            raise MethodError(
                f"teacher {config.teacher} takes {teacher.augment_dim} augmentation labels, not "
                f"{AUGMENT_LABELS}: set objective.augmentation to 0"
            )

    def roles(self) -> Sequence[Role]:
        fake_score = self.objective.fake_score
        return (
            generator_role(self._config, headless),
            Role(
                FAKE_SCORE,
                fake_score.learning_rate,
                forced_norm=fake_score.forced_weight_norm,
                reads_real=self.adversarial,
                clip_value=fake_score.clip_value,
            ),
        )

    def guides(self) -> Mapping[str, Path]:
        return {} if self.objective.guide is None else {GUIDE: Path(self.objective.guide)}

    def check_guides(self, guides: Mapping[str, Architecture]) -> None:
        # The fake score sees augmented images where it is trained, and with it what guides it.
        told = self.objective.augmentation and self.objective.guidance_fake_score != 1
        for guide in guides.values():
            if told and guide.augment_dim != AUGMENT_LABELS:
                raise MethodError(
                    f"guide {self.objective.guide} takes {guide.augment_dim} augmentation labels, "
                    f"not {AUGMENT_LABELS}: set objective.augmentation to 0, or "
                    "objective.guidance_fake_score to 1"
                )

    def updates(self, images_seen: int) -> Iterator[Update]:
        for _ in range(self.objective.fake_score_updates):
            yield Update(FAKE_SCORE, self._fake_score_loss)
        if self._moves_generator(images_seen):
            weighs_gan = self._weighs_gan(images_seen)
            loss = partial(self._generator_loss, weighs_gan=weighs_gan)
            weighs_samples = weighs_gan and self.objective.divergence != "reverse_kl"
            ratios = self._density_ratios if weighs_samples else None
            yield Update(GENERATOR, loss, per_sample=ratios)

    def _moves_generator(self, images_seen: int) -> bool:
        return True

    def _weighs_gan(self, images_seen: int) -> bool:
        return False

    def _fake_score_loss(self, networks: Networks, batch: MicroBatch) -> Loss:
        sigma_draw = batch.noise.of("sigma").normal(1, 1, 1)
        noise = batch.noise.of("noise").normal(*batch.shape)
        real = batch.real() if self.adversarial else None
        with torch.no_grad():
            images = batch.generated(networks[GENERATOR])
        augment_labels = None
        if self.objective.augmentation:
            images, real, augment_labels = self._augmented(images, real, batch.noise)
        return fake_score_loss(
            self._guided(networks, FAKE_SCORE, self.objective.guidance_fake_score),
            images,
            real,
            batch.condition,
            lognormal_sigma(
                sigma_draw, self.objective.fake_score.p_mean, self.objective.fake_score.p_std
            ),
            noise,
            self.objective,
            self._sigma_data,
            augment_labels,
        )

    def _augmented(
        self, images: Tensor, real: Tensor | None, noise: KeyedNoise
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Generated and real images, each with augmentations of its own, and the labels of both."""
        probability = self.objective.augmentation
        draws = draw_augmentation(noise, "augment generated")
        images, labels = augment(images, draws, probability)
        if real is None:
            return images, None, labels
        draws = draw_augmentation(noise, "augment real")
        real, labels_real = augment(real, draws, probability)
        return images, real, torch.cat([labels, labels_real])

    def _generator_loss(self, networks: Networks, batch: MicroBatch, *, weighs_gan: bool) -> Loss:
        images, sigma, noise = self._generated(networks, batch)
        return generator_loss(
            self._guided(networks, TEACHER, self.objective.guidance),
            self._guided(networks, FAKE_SCORE, self.objective.guidance_fake_score),
            images,
            batch.condition,
            sigma,
            noise,
            self.objective,
            adversarial=weighs_gan,
            of_whole_batch=batch.of_whole_batch,
        )

    def _density_ratios(self, networks: Networks, batch: MicroBatch) -> Tensor:
        """The density ratios that `_generator_loss` weighs its samples by, (N,)."""
        images, sigma, noise = self._generated(networks, batch)
        noisy = images + sigma * noise
        logits = discriminator_logits(networks[FAKE_SCORE], noisy, sigma, batch.condition)
        return density_ratio(logits)

    def _generated(self, networks: Networks, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Generated images, and the sigma and the noise at which the scores see them."""
        sigma = generator_sigma(batch.noise.of("sigma").uniform(1, 1, 1), self.objective.tmax)
        noise = batch.noise.of("noise").normal(*batch.shape)
        return batch.generated(networks[GENERATOR]), sigma, noise

    def _guided(self, networks: Networks, name: str, weight: float | None) -> Denoise:
        """A network, guided if the run has a guide for it."""
        if GUIDE not in networks or weight is None or weight == 1:
            return networks[name]
        return guided(networks[name], networks[GUIDE], weight, self.objective.guidance_sigma)


class SiDA(SiD):
    """SiD with an adversarial branch: the fake score's encoder doubles as a discriminator."""

    adversarial = True

    def _moves_generator(self, images_seen: int) -> bool:
        return images_seen >= self.objective.warm_up.generator_images

    def _weighs_gan(self, images_seen: int) -> bool:
        return images_seen >= self.objective.warm_up.adversarial_images
