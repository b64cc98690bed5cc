"""Settings of the methods: what the group `objective:` of a run's YAML can hold.

Each method names a dataclass here. Imports nothing heavy: a config is checked before torch is
imported.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sid_scale.config.fields import (
    SETTINGS,
    Flag,
    Interval,
    Natural,
    NetworkLocation,
    NotNegative,
    Number,
    Positive,
    PositiveNumber,
    Share,
    Texts,
    WeightsLocation,
)
from sid_scale.config.parse import ConfigError


@dataclass(frozen=True, config=SETTINGS)
class FakeScoreSettings:
    """Training of the fake score."""

    learning_rate: PositiveNumber = 5e-5
    """learning rate of the fake score"""
    forced_weight_norm: Flag = False
    """whether its weights are kept normalised; the published runs' never were"""
    p_mean: Number = -0.4
    """mean of log sigma"""
    p_std: PositiveNumber = 1.0
    """standard deviation of log sigma"""
    clip_value: PositiveNumber | None = None
    """largest magnitude of each element of its gradient; null: any"""


@dataclass(frozen=True, config=SETTINGS)
class WarmUp:
    """Images seen before parts of SiDA begin. SiD's generator moves from the start."""

    generator_images: Natural = 100_000
    """before the generator moves"""
    adversarial_images: Natural = 200_000
    """before the generator's adversarial term counts"""


@dataclass(frozen=True, config=SETTINGS)
class SiDObjective:
    """The losses of SiD, SiDA and SiD2A; defaults are those of the published runs."""

    alpha: Number = 1.0
    """weight of the squared gap between teacher and fake score"""
    gradient: Literal["sid", "kl"] = "sid"
    """of the generator's loss: sid differentiates teacher and fake score; kl takes their difference
    as the gradient, so that neither has a backward pass"""
    fake_score_updates: Positive = 1
    """of the fake score, for each one of the generator"""
    divergence: Literal["reverse_kl", "forward_kl", "jeffreys", "jensen_shannon"] = "reverse_kl"
    """what weighs each sample of the generator's loss, by the density ratio that SiDA's
    discriminator estimates; reverse_kl does not"""
    tmax: Annotated[Number, Field(gt=0, le=1000)] = 800.0
    """of 1000: larger sigmas are left out of the generator's loss"""
    logvar_weighting: Flag = True
    """whether losses are divided by exp(logvar) of the fake score"""
    loss_scale_generator: Number = 100.0
    """scale of the generator's SiD loss"""
    loss_scale_generator_gan: Number = 0.01
    """scale of the generator's adversarial loss, of the mean over elements, times C * H * W"""
    loss_scale_discriminator: Number = 100.0
    """scale of the discriminator's loss"""
    sid_share: Share = 0.5
    """of the generator's loss, once the adversarial term counts"""
    augmentation: Share = 0.0
    """probability of each of EDM's augmentations of what the fake score sees, generated and real;
    for teachers that take augmentation labels"""
    discriminator_logit_limit: PositiveNumber | None = 10.0
    """the discriminator learns nothing from logits beyond it; null: from all"""
    adversarial_group: Positive | None = None
    """samples over which SiDA's cross-entropies are means; null: the micro-batch"""
    guide: NetworkLocation | None = None
    """network folder, or its name on the hub, of a lesser teacher, or an unconditional one, that
    guides the teacher"""
    guidance: NotNegative | None = None
    """how far the teacher is extrapolated away from the guide; 1: not at all"""
    guidance_fake_score: NotNegative = 1.0
    """the same of the fake score, where it is trained and where it is compared with the teacher"""
    guidance_sigma: Interval | None = None
    """noise levels from and to which there is guidance; null: all"""
    fake_score: FakeScoreSettings = dataclasses.field(default_factory=FakeScoreSettings)
    warm_up: WarmUp = dataclasses.field(default_factory=WarmUp)

    def check(self, config: Any) -> None:
        """Raises ConfigError for a run that contradicts its method."""
        networks = ("generator", "fake_score", "teacher")
        config.activations_of(networks if self.guide is None else (*networks, "guide"))
        self._check_guidance()
        if config.method == "sid" and self.divergence != "reverse_kl":
            raise ConfigError(
                f"objective.divergence {self.divergence} is of weights by a discriminator, which "
                "method sid has not: use sida, or reverse_kl"
            )
        if config.method != "sid" and config.data is None:
            raise ConfigError(
                f"method {config.method} learns from real data: set data to a folder of shards, "
                "or method to sid"
            )
        if config.method == "sid2a" and config.generator_init is None:
            raise ConfigError(
                "method sid2a starts from a given generator: set generator_init to its folder, "
                "or method to sida"
            )
        group = self.adversarial_group
        if config.method != "sid" and group is not None and config.micro_batch % group:
            raise ConfigError(
                f"micro_batch {config.micro_batch} is no multiple of objective.adversarial_group "
                f"{group}, the samples over which SiDA's cross-entropies are means: make it one, "
                "or set another group (null: the micro-batch)"
            )

    def _check_guidance(self) -> None:
        if self.guide is not None and self.guidance is None:
            raise ConfigError(
                "objective.guide needs objective.guidance, how far the teacher is extrapolated "
                "away from it: try 1.5"
            )
        if self.guide is None:
            unguided = {"guidance": None, "guidance_fake_score": 1.0, "guidance_sigma": None}
            for name, value in unguided.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"objective.{name} has nothing to guide by: set objective.guide to a "
                        "network folder"
                    )

    def in_effect(self, config: Any) -> dict[str, Any]:
        """What of these settings cannot change on resume, as it takes effect."""
        if config.method == "sid":
            return {}  # each sample's loss is its own: micro_batch may change
        return {"adversarial_group": self.adversarial_group or config.micro_batch}


@dataclass(frozen=True, config=SETTINGS)
class DiscriminatorSettings:
    """GDD's discriminator: heads on projected maps of features."""

    learning_rate: PositiveNumber = 1e-4
    """of both its updates together: lazy regularisation lowers that of each a little"""
    width: Positive = 64
    """channels of its heads, which double up to eight times as many"""
    projection_width: Positive = 64
    """channels of the first projected map"""
    embedding: Positive = 320
    """numbers that a class is embedded in"""


@dataclass(frozen=True, config=SETTINGS)
class GDDObjective:
    """The losses of GDD; defaults are those of the published runs."""

    feature_networks: dict[str, WeightsLocation] = dataclasses.field(default_factory=dict)
    """pretrained networks that look at images, by name (vgg16_bn, tf_efficientnet_lite0,
    deit_base_distilled_patch16_224): the safetensors file of each,
    or the name of a model on the hub that has it; latents are decoded for them"""
    teacher_sigma: PositiveNumber | None = None
    """noise level at which the frozen teacher's encoder is one more of them; null: it is none"""
    decoded_crop: Positive | None = None
    """side of the random crops of latents (of pixel teachers: of images) that feature networks look
    at; null: whole ones"""
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    """the adversarial loss"""
    summed_images: PositiveNumber = 64
    """images over which adversarial losses are summed, beside R1's mean; the published runs have
    those of one GPU, 64, and 128 on ImageNet"""
    r1_gamma: NotNegative = 1e-4
    """weight of R1, the squared gradient of the discriminator at real images; 0: no R1"""
    r1_interval: Positive = 16
    """iterations from one update with R1 to the next"""
    discriminator: DiscriminatorSettings = dataclasses.field(default_factory=DiscriminatorSettings)

    def check(self, config: Any) -> None:
        """Raises ConfigError for a run that contradicts its method."""
        networks = ("generator", "discriminator")
        config.activations_of(networks if self.teacher_sigma is None else (*networks, "teacher"))
        if config.data is None:
            raise ConfigError(
                f"method {config.method} learns from real data: set data to a folder of shards"
            )
        if not self.feature_networks and self.teacher_sigma is None:
            raise ConfigError(
                f"method {config.method} has nothing to look at images with: name a safetensors "
                "file under objective.feature_networks, or set objective.teacher_sigma"
            )
        if self.decoded_crop is not None and not self.feature_networks:
            raise ConfigError(
                "objective.decoded_crop is of images that objective.feature_networks look at, and "
                "there are none: use null"
            )

    def in_effect(self, config: Any) -> dict[str, Any]:
        """What of these settings cannot change on resume, as it takes effect.

        Batch normalisation takes the statistics of a micro-batch. Files of feature networks are
        compared by what is in them.
        """
        shape = dataclasses.asdict(self.discriminator)
        del shape["learning_rate"]
        return {
            "micro_batch": config.micro_batch,
            "teacher_features": self.teacher_sigma is not None,
            "discriminator": shape,
        }


@dataclass(frozen=True, config=SETTINGS)
class GDDIObjective(GDDObjective):
    """Those of GDD-I, and what it leaves as it is."""

    freeze: Texts = ("convolutions",)
    """groups of the generator's weights that stay as they are, convolutions (in the blocks:
    convolutions and projections), qkv, skip; or patterns of their names"""

    def check(self, config: Any) -> None:
        """As in GDD."""
        super().check(config)
        if not self.freeze:
            raise ConfigError("objective.freeze is empty: name groups of weights, or use gdd")


# Method -> dataclass of its group of settings.
OBJECTIVES: dict[str, type] = {
    "sid": SiDObjective,
    "sida": SiDObjective,
    "sid2a": SiDObjective,
    "gdd": GDDObjective,
    "gdd_i": GDDIObjective,
}


def register_objective(method: str, objective: type) -> None:
    """Names the dataclass of a method's settings.

    It may have `check(config)`, which raises ConfigError, and `in_effect(config)`: what of the
    settings cannot change on resume, by name. Without, that is the micro-batch.
    """
    OBJECTIVES[method] = objective
