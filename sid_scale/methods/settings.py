"""Settings of the methods: what the group `objective:` of a run's YAML can hold.

Each method names a dataclass here. Imports nothing heavy: a config is checked before torch is
imported.
"""

import dataclasses
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from sid_scale.config.fields import SETTINGS, Flag, Natural, Number, PositiveNumber, Share
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
    fake_score: FakeScoreSettings = dataclasses.field(default_factory=FakeScoreSettings)
    warm_up: WarmUp = dataclasses.field(default_factory=WarmUp)

    def check(self, config: Any) -> None:
        """Raises ConfigError for a run that contradicts its method."""
        config.activations_of(("generator", "fake_score", "teacher"))
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


# Method -> dataclass of its group of settings.
OBJECTIVES: dict[str, type] = {"sid": SiDObjective, "sida": SiDObjective, "sid2a": SiDObjective}


def register_objective(method: str, objective: type) -> None:
    """Names the dataclass of a method's settings; it may have `check(config)`."""
    OBJECTIVES[method] = objective
