"""One run = one YAML file -> frozen dataclasses.

`load_config` reads the file (or a preset by name), lays `key=value` overrides over it and
checks everything that can be checked without touching a device: unknown keys, wrong types,
values out of range, settings that contradict each other. Each fault is one clear error.

A file may begin with `extends: other.yaml`; it then states only what differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sid_scale.config.groups import (
    AdamSettings,
    CheckpointConfig,
    EMAConfig,
    EvaluationConfig,
    ForcedNormConfig,
    LearningRates,
    LogConfig,
    ObjectiveConfig,
    SnapshotConfig,
    StreamConfig,
    WarmUp,
)
from sid_scale.config.parse import (
    ConfigError,
    apply_override,
    build,
    dump_yaml,
    nearest,
    read_yaml,
)

PRESETS = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    run_dir: str
    teacher: str  # network folder
    deepspeed: str  # DeepSpeed JSON
    total_images: int
    batch_size: int = 2048  # over all devices
    micro_batch: int = 32  # per device
    method: Literal["sid", "sida", "sid2a"] = "sida"
    seed: int = 0
    data: str | None = None  # shard folder, or its URL; sid needs none
    labels: str = "histogram"  # of generated images: of the data, "uniform", or a file of classes
    generator_init: str | None = None  # network folder that sid2a, and it alone, starts from
    steps: Literal[1, 2, 4] = 1
    dropout: float = 0.0
    teacher_activations: Literal["keep", "checkpoint", "offload"] = (
        "keep"  # networks/checkpoint_activations.py
    )
    resume: str = "auto"  # auto, never, or a checkpoint folder
    max_skipped: int = 20  # updates in a row that may be skipped for non-finite gradients
    collective_timeout_seconds: float = 600  # a rank that does not answer for so long ends all
    stop_timeout_seconds: float = 600  # from a request to stop to a forced end
    learning_rate: LearningRates = field(default_factory=LearningRates)
    adam: AdamSettings = field(default_factory=AdamSettings)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    warm_up: WarmUp = field(default_factory=WarmUp)
    ema: EMAConfig = field(default_factory=EMAConfig)
    forced_weight_norm: ForcedNormConfig = field(default_factory=ForcedNormConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def adversarial(self) -> bool:
        """Whether real data and a discriminator take part."""
        return self.method in ("sida", "sid2a")

    def learning_rate_scale(self, images_seen: int) -> float:
        """Share of the learning rates that holds by now."""
        ramp = self.learning_rate.ramp_down_images
        return min(1.0, (self.total_images - images_seen) / ramp) if ramp else 1.0

    def moves_generator(self, images_seen: int) -> bool:
        """Whether the generator is trained by now."""
        return self.method == "sid" or images_seen >= self.warm_up.generator_images

    def is_adversarial(self, images_seen: int) -> bool:
        """Whether the generator's adversarial term counts by now."""
        return self.adversarial and images_seen >= self.warm_up.adversarial_images

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each of `world_size` devices puts into one update.

        Raises:
            ConfigError: batch_size does not divide evenly; names the nearest that would.
        """
        share = self.micro_batch * world_size
        if self.batch_size % share:
            below = self.batch_size // share * share
            batches = [n for n in (below, below + share) if n > 0]
            raise ConfigError(
                f"batch_size {self.batch_size} is no multiple of micro_batch "
                f"{self.micro_batch} x {world_size} devices = {share}; the nearest that are: "
                f"{_told(batches)}{self._nearest_worlds(world_size)}"
            )
        return self.batch_size // share

    def _nearest_worlds(self, world_size: int) -> str:
        """Numbers of devices that batch_size and micro_batch, left as they are, allow."""
        if self.batch_size % self.micro_batch:
            return ""
        micro_batches = self.batch_size // self.micro_batch
        fitting = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
        nearest_two = sorted(sorted(fitting, key=lambda n: abs(n - world_size))[:2])
        return f". With these two, the nearest numbers of devices: {_told(nearest_two)}"


def _told(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run described by a YAML file, or a preset's name, and `key=value` overrides.

    Raises:
        ConfigError: see the module's docstring.
    """
    settings = read_yaml(_find(source))
    for override in overrides:
        apply_override(settings, override)
    config = build(RunConfig, settings)
    _check(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return dump_yaml(config)


def preset_names() -> list[str]:
    """Names that `load_config` takes in place of a path."""
    return sorted(path.stem for path in PRESETS.glob("[!_]*.yaml"))


def _find(source: str | Path) -> Path:
    for path in (Path(source), PRESETS / f"{source}.yaml"):
        if path.is_file():
            return path
    hint = nearest(str(source), preset_names())
    raise ConfigError(f"config: {source} is neither a file nor a preset{hint}")


def _check(config: RunConfig) -> None:
    """Values out of range and contradictions."""
    objective, warm_up = config.objective, config.warm_up
    at_least = {
        "total_images": (config.total_images, 1),
        "batch_size": (config.batch_size, 1),
        "micro_batch": (config.micro_batch, 1),
        "seed": (config.seed, 0),
        "max_skipped": (config.max_skipped, 1),
        "warm_up.generator_images": (warm_up.generator_images, 0),
        "warm_up.adversarial_images": (warm_up.adversarial_images, 0),
        "checkpoint.every_images": (config.checkpoint.every_images, 1),
        "checkpoint.keep": (config.checkpoint.keep, 1),
        "checkpoint.keep_every": (config.checkpoint.keep_every, 0),
        "snapshot.every_images": (config.snapshot.every_images, 0),
        "learning_rate.ramp_down_images": (config.learning_rate.ramp_down_images, 0),
        "log.every_images": (config.log.every_images, 1),
        "log.samples_every_images": (config.log.samples_every_images, 0),
        "log.samples": (config.log.samples, 1),
        "ema.ramp_up": (config.ema.ramp_up, 0),
        "stream.prefetch": (config.stream.prefetch, 1),
        "stream.workers": (config.stream.workers, 1),
        "stream.retries": (config.stream.retries, 0),
        "stream.backoff_seconds": (config.stream.backoff_seconds, 0),
        "evaluation.every_images": (config.evaluation.every_images, 0),
        "evaluation.num": (config.evaluation.num, 2),
        "evaluation.first_seed": (config.evaluation.first_seed, 0),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"{key}: {value} is below {least}")
    positive = {
        "learning_rate.generator": config.learning_rate.generator,
        "learning_rate.fake_score": config.learning_rate.fake_score,
        "objective.init_sigma": objective.init_sigma,
        "objective.p_std": objective.p_std,
        "ema.half_life": config.ema.half_life,
        "collective_timeout_seconds": config.collective_timeout_seconds,
        "stop_timeout_seconds": config.stop_timeout_seconds,
        "stream.cache_gb": config.stream.cache_gb,
        "stream.timeout_seconds": config.stream.timeout_seconds,
    }
    for key, positive_value in positive.items():
        if not positive_value > 0:
            raise ConfigError(f"{key}: {positive_value} is not above 0")
    width = config.ema.relative_width
    if width is not None and not 0 < width < 12**-0.5:
        raise ConfigError(f"ema.relative_width: {width} is not in (0, 0.288); try 0.1")
    if not 0 < objective.tmax <= 1000:
        raise ConfigError(f"objective.tmax: {objective.tmax} is not in (0, 1000]")
    if not 0 <= objective.sid_share <= 1:
        raise ConfigError(f"objective.sid_share: {objective.sid_share} is not in [0, 1]")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"dropout: {config.dropout} is not in [0, 1)")
    config.accumulation(world_size=1)
    if config.adversarial and config.data is None:
        raise ConfigError(
            f"method {config.method} learns from real data: set data to a folder of shards, "
            "or method to sid"
        )
    if config.method == "sid2a" and config.generator_init is None:
        raise ConfigError(
            "method sid2a starts from a given generator: set generator_init to its folder, "
            "or method to sida"
        )
