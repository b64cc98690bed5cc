"""SiD, SiDA and SiD2A: score identity distillation, with an adversarial branch on real data.

SiD is arXiv 2404.04057, SiDA and SiD2A (SiDA from a generator that SiD made) arXiv 2410.14919.
Two networks learn in turns. The fake score learns to denoise what the generator makes at the
moment, and in SiDA to tell it from real images. The generator learns from where teacher and fake
score, given the same noised image, disagree.

The two losses are in `sid_losses.py`; what each is given is decided here.
"""

from collections.abc import Iterator, Sequence
from functools import partial

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
from sid_scale.methods.settings import SiDObjective
from sid_scale.methods.sid_losses import fake_score_loss, generator_loss
from sid_scale.networks import Architecture

FAKE_SCORE = "fake_score"


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

    def updates(self, images_seen: int) -> Iterator[Update]:
        yield Update(FAKE_SCORE, self._fake_score_loss)
        if self._moves_generator(images_seen):
            weighs_gan = self._weighs_gan(images_seen)
            loss = partial(self._generator_loss, weighs_gan=weighs_gan)
            yield Update(GENERATOR, loss)

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
            networks[FAKE_SCORE],
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
        sigma_draw = batch.noise.of("sigma").uniform(1, 1, 1)
        noise = batch.noise.of("noise").normal(*batch.shape)
        return generator_loss(
            networks[TEACHER],
            networks[FAKE_SCORE],
            batch.generated(networks[GENERATOR]),
            batch.condition,
            generator_sigma(sigma_draw, self.objective.tmax),
            noise,
            self.objective,
            adversarial=weighs_gan,
        )


class SiDA(SiD):
    """SiD with an adversarial branch: the fake score's encoder doubles as a discriminator."""

    adversarial = True

    def _moves_generator(self, images_seen: int) -> bool:
        return images_seen >= self.objective.warm_up.generator_images

    def _weighs_gan(self, images_seen: int) -> bool:
        return images_seen >= self.objective.warm_up.adversarial_images
