"""GDD and GDD-I: distillation by an adversarial loss alone (arXiv 2405.20750).

The generator starts from the teacher and learns from a projected discriminator what real images
look like, whatever the teacher would make of the same noise. There is no score identity and no
fake score; the teacher is not even in memory, unless its encoder looks at images, too.

An iteration has three updates: the generator's, the discriminator's, and from time to time the
discriminator's with R1 alone (lazy regularisation, arXiv 1912.04958, Sec. 4).

Departures from the published code: the fixed random projections are the same on all ranks, a
function of the run's seed (there each rank has its own); each update draws its own real images
(there all of an iteration share one batch); embeddings of classes begin at random (there at
ImageNet features of each class). Batch normalisation takes its statistics of one micro-batch on one
rank, as there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.config.run import RunConfig
from sid_scale.diffusion.noise import keyed_seed
from sid_scale.errors import UsageError
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
)
from sid_scale.methods.settings import GDDObjective
from sid_scale.networks import Architecture, EncoderLevel, features
from sid_scale.networks.discriminator import SMALLEST_MAP, Discriminator, head_channels
from sid_scale.networks.features.projection import ProjectedFeatures, RandomProjection
from sid_scale.seeding import seeded

DISCRIMINATOR = "discriminator"
PROJECTION = "teacher_projection"  # the fixed network on the teacher's features
SIGMA_MIN = 0.002  # of the generator's preconditioning

Logits = Sequence[Tensor]  # of each source of features, (N, positions)


class GDD(Method):
    """See the module's docstring."""

    freeze: tuple[str, ...] = ()  # of the generator's weights

    def __init__(self, config: RunConfig, teacher: Architecture):
        self.objective: GDDObjective = config.objective
        self.uses_teacher = self.objective.teacher_sigma is not None
        self.decodes = bool(self.objective.feature_networks)
        self._config = config
        self._levels = _visible_levels(teacher)
        if self.uses_teacher and not self._levels:
            raise UsageError(
                f"teacher {config.teacher} has no encoder whose features can be looked at, in maps "
                f"of {SMALLEST_MAP} pixels or more: set objective.teacher_sigma to null"
            )
        crop, side = self.objective.decoded_crop, min(teacher.sample_shape[1:])
        if crop is not None and crop > side:
            raise UsageError(
                f"objective.decoded_crop {crop} is more than the {side} of teacher "
                f"{config.teacher}: use {side} at most, or null for whole ones"
            )

    def roles(self) -> Sequence[Role]:
        interval = self.objective.r1_interval
        # R1's updates make interval + 1 of interval; Adam is to move as much in all of them.
        share = interval / (interval + 1) if self.objective.r1_gamma else 1.0
        beta1, beta2 = self._config.adam.betas
        return (
            generator_role(self._config, generator_architecture, self.freeze),
            Role(
                DISCRIMINATOR,
                self.objective.discriminator.learning_rate * share,
                reads_real=True,
                betas=(beta1**share, beta2**share),
                build=self._build_discriminator,
                exact=True,
            ),
        )

    def updates(self, images_seen: int) -> Iterator[Update]:
        yield Update(GENERATOR, self._generator_loss)
        yield Update(DISCRIMINATOR, self._discriminator_loss)
        iteration, interval = images_seen // self._config.batch_size, self.objective.r1_interval
        if self.objective.r1_gamma and iteration > 0 and iteration % interval == 0:
            yield Update(DISCRIMINATOR, self._r1_loss, "r1", every=interval, differentiates=True)

    def files(self) -> Mapping[str, Path]:
        # Sorted: a discriminator is the same in whatever order a YAML names its sources.
        return {name: Path(file) for name, file in sorted(self.objective.feature_networks.items())}

    def fixed_networks(self, device: torch.device) -> Mapping[str, nn.Module]:
        networks: dict[str, nn.Module] = {}
        for name, file in self.files().items():
            seed = keyed_seed(self._config.seed, name, 0)
            if device.type == "meta":
                network = features.build_feature_network(name, seed)
            else:
                network = features.load_feature_network(name, file, seed, device)
            networks[name] = ProjectedFeatures(network, self._projection(name, network.channels))
        if self.uses_teacher:
            channels = [level.channels for level in self._levels]
            networks[PROJECTION] = self._projection(PROJECTION, channels)
        return {n: network.to(device).requires_grad_(False) for n, network in networks.items()}

    def _projection(self, name: str, channels: Sequence[int]) -> RandomProjection:
        """The projection for the features of that name, the same on all ranks."""
        width = self.objective.discriminator.projection_width
        with seeded(keyed_seed(self._config.seed, f"{name} mixed", 0)):
            return RandomProjection(channels, width)

    def _build_discriminator(self, architecture: Architecture) -> nn.Module:
        settings = self.objective.discriminator
        levels = {name: len(features.channels(name)) for name in self.files()}
        if self.uses_teacher:
            levels[TEACHER] = len(self._levels)
        channels = {
            name: head_channels(n, settings.projection_width, settings.width)
            for name, n in levels.items()
        }
        return Discriminator(channels, architecture.label_dim, settings.embedding)

    # --- the three losses ------------------------------------------------------------------

    def _generator_loss(self, networks: Networks, batch: MicroBatch) -> Loss:
        images = batch.generated(networks[GENERATOR])
        logits = networks[DISCRIMINATOR](self._logits_of(images, networks, batch))
        loss = self.objective.summed_images * generator_loss(logits, self.objective.loss)
        return Loss(loss, {"loss/generator": loss.detach()})

    def _discriminator_loss(self, networks: Networks, batch: MicroBatch) -> Loss:
        with torch.no_grad():
            images = batch.generated(networks[GENERATOR])
        generated = networks[DISCRIMINATOR](self._logits_of(images, networks, batch))
        real = networks[DISCRIMINATOR](self._logits_of(batch.real(), networks, batch))
        loss = discriminator_loss(generated, real, self.objective.loss)
        loss = self.objective.summed_images * loss
        terms = {
            "loss/discriminator": loss.detach(),
            "logits/generated": _mean(generated),
            "logits/real": _mean(real),
        }
        return Loss(loss, terms)

    def _r1_loss(self, networks: Networks, batch: MicroBatch) -> Loss:
        real = batch.real().requires_grad_()
        logits_of = self._logits_of(real, networks, batch)
        penalty = networks[DISCRIMINATOR](lambda heads: r1_penalty(real, logits_of(heads)))
        loss = self.objective.r1_interval * self.objective.r1_gamma / 2 * penalty.mean()
        return Loss(loss, {"loss/r1": loss.detach(), "r1_penalty": penalty.detach().mean()})

    def _logits_of(
        self, images: Tensor, networks: Networks, batch: MicroBatch
    ) -> Callable[[Discriminator], Logits]:
        """What the discriminator's heads make of images: a function of the heads."""
        maps = self._maps(networks, batch, images)
        return lambda heads: heads.logits(maps, batch.condition)

    def _maps(
        self, networks: Networks, batch: MicroBatch, images: Tensor
    ) -> dict[str, Sequence[Tensor]]:
        """Projected maps of features, by source."""
        found: dict[str, Sequence[Tensor]] = {}
        if self.objective.feature_networks:
            pixels = batch.decode(self._cropped(images, batch))
            found = {name: networks[name](pixels) for name in self.files()}
        sigma = self.objective.teacher_sigma
        if sigma is not None:
            noise = batch.noise.of("teacher features").normal(*batch.shape)
            blocks = tuple(level.block for level in self._levels)
            prediction = networks[TEACHER](
                images + sigma * noise,
                torch.full((len(images),), sigma, device=images.device),
                batch.condition,
                features=blocks,
                decoded=0,
            )
            found[TEACHER] = networks[PROJECTION]([f.float() for f in prediction.features])
        return found

    def _cropped(self, images: Tensor, batch: MicroBatch) -> Tensor:
        """The same random crop of generated and of real images, sample by sample."""
        side, (_, height, width) = self.objective.decoded_crop, batch.shape
        if side is None:
            return images
        draw = batch.noise.of("crop").uniform(2)  # (N, 2)
        top = (draw[:, 0] * (height - side + 1)).long()
        left = (draw[:, 1] * (width - side + 1)).long()
        within = torch.arange(side, device=images.device)
        rows, columns = top[:, None] + within, left[:, None] + within  # (N, side)
        sample = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class GDDI(GDD):
    """GDD with most of the generator's convolutions left as they are: innate features of the
    teacher, which the other layers learn to use for a single step (Sec. 3.4)."""

    def __init__(self, config: RunConfig, teacher: Architecture):
        super().__init__(config, teacher)
        self.freeze = config.objective.freeze


def generator_architecture(teacher: Architecture) -> Architecture:
    """The teacher's without an uncertainty head and augmentation labels, its preconditioning
    shifted."""
    generator = teacher.headless().shifted(SIGMA_MIN)
    return replace(generator, augment_dim=0) if generator.augment_dim else generator


def _visible_levels(teacher: Architecture) -> list[EncoderLevel]:
    """Of the teacher's encoder: those whose maps are large enough for the heads, which all end at
    the size of the deepest one."""
    levels, side = teacher.encoder_levels(), min(teacher.sample_shape[1:])
    return [level for depth, level in enumerate(levels) if side >> depth >= SMALLEST_MAP]


def _mean(logits: Logits) -> Tensor:
    return torch.cat(tuple(logits), dim=1).detach().mean()


# --- losses as pure functions; logits (N, positions) of each source of features -----------------


def generator_loss(logits: Logits, kind: str = "non_saturating") -> Tensor:
    """The generated should look real: summed over sources, a mean over N images and positions."""
    if kind == "hinge":
        return _over_sources([-of_source for of_source in logits])
    return _over_sources([F.softplus(-of_source) for of_source in logits])


def discriminator_loss(generated: Logits, real: Logits, kind: str = "non_saturating") -> Tensor:
    """Generated and real should look so: summed over sources, a mean over images and positions."""
    limit = F.relu if kind == "hinge" else F.softplus
    margin = 1.0 if kind == "hinge" else 0.0
    on_generated = _over_sources([limit(margin + of_source) for of_source in generated])
    return on_generated + _over_sources([limit(margin - of_source) for of_source in real])


def r1_penalty(images: Tensor, logits: Logits) -> Tensor:
    """R1 (arXiv 1801.04406, Eq. 9): the squared gradient of all logits' sum, (N,).

    Args:
        images: real ones, (N, C, H, W), that the logits were made from.
    """
    total = torch.stack([of_source.sum() for of_source in logits]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def _over_sources(losses: Sequence[Tensor]) -> Tensor:
    """Of values (N, positions) for each source: the mean over all of one, and the sum of these."""
    return torch.stack([of_source.mean() for of_source in losses]).sum()
