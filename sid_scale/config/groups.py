"""The groups of a run's settings, each owned by the component that is named in it.

`config/run.py` puts them together and checks them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearningRates:
    """Adam's learning rates: constant, as published, or falling to zero at the end.

    Over the last `ramp_down_images` of the run they fall linearly: a short run has no time to
    average its noise away.
    """

    generator: float = 5e-5
    fake_score: float = 5e-5
    ramp_down_images: int = 0


@dataclass(frozen=True)
class AdamSettings:
    """Adam of both networks; `eps` null is 1e-8, and 1e-6 in half precision."""

    betas: tuple[float, float] = (0.0, 0.999)
    eps: float | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """The losses (losses.py, step.py); defaults are those of the published runs."""

    alpha: float = 1.0
    tmax: float = 800.0  # of 1000: larger sigmas are left out of the generator's loss
    init_sigma: float = 2.5
    p_mean: float = -0.4  # fake score: log-normal sigma
    p_std: float = 1.0
    logvar_weighting: bool = True
    loss_scale_generator: float = 100.0
    loss_scale_generator_gan: float = 0.01  # of the mean over elements, times C * H * W
    loss_scale_discriminator: float = 100.0
    sid_share: float = 0.5  # of the generator's loss, when the adversarial term is on


@dataclass(frozen=True)
class WarmUp:
    """Images seen before the generator moves, and before its adversarial term counts.

    SiD has no such gates: its generator moves from the start.
    """

    generator_images: int = 100_000
    adversarial_images: int = 200_000


@dataclass(frozen=True)
class EMAConfig:
    """Average of the generator's weights; half-life in images, ramp-up as a share.

    A `relative_width` makes it EDM2's power-function average instead.
    """

    half_life: float = 2_000_000
    ramp_up: float = 0.05
    relative_width: float | None = None


@dataclass(frozen=True)
class ForcedNormConfig:
    """Which network's weights are kept normalised."""

    generator: bool = True
    fake_score: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole training state is written, and which stay.

    The newest `keep` do, and of every `keep_every` images the first (0: none). Written behind,
    training waits only for a copy to host memory, where that has room for one.
    """

    every_images: int = 1_000_000
    keep: int = 2
    keep_every: int = 0
    async_save: bool = True


@dataclass(frozen=True)
class StreamConfig:
    """How latents are read; nothing here changes which sample comes when.

    With a `cache_dir`, shards are copied there before they are read; it is best on a disk of
    the node's own, whose ranks share it.
    """

    cache_dir: str | None = None
    cache_gb: float = 200.0  # least recently used shards go
    prefetch: int = 4  # micro-batches that wait ready, the one in the making counted
    workers: int = 4  # threads that fetch what is not a local file
    retries: int = 5  # of what is not a local file
    backoff_seconds: float = 1.0  # before the first retry; doubled before each other
    timeout_seconds: float = 60.0  # without a byte
    on_bad_sample: Literal["stop", "skip"] = "stop"  # skip: take its neighbour instead


@dataclass(frozen=True)
class SnapshotConfig:
    """When the averaged generator is written as a network folder; 0: only at the end."""

    every_images: int = 0


@dataclass(frozen=True)
class LogConfig:
    """When the run speaks; `samples_every_images` 0 draws no pictures."""

    every_images: int = 20_480
    samples_every_images: int = 500_000
    samples: int = 36


@dataclass(frozen=True)
class EvaluationConfig:
    """When the averaged generator is measured, and by what (evaluate/training.py); 0: never.

    Metrics and files are those of `python -m sid_scale.evaluate run`. The generator that is best by
    `best_by` (null: the first of the metrics) is kept.
    """

    every_images: int = 0
    num: int = 10_000
    first_seed: int = 0
    metrics: tuple[str, ...] = ("fid",)
    reference: tuple[str, ...] = ()  # files
    inception: str | None = None  # inception-2015-12-05.pt
    dinov2: str | None = None  # folder of facebook/dinov2-large
    best_by: str | None = None
    vae_precision: Literal["float32", "bfloat16", "float16"] = "float32"
