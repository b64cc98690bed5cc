"""One run = one YAML file -> frozen dataclasses.

`load_config` reads the file (or a preset by name), lays `key=value` overrides over it and
checks everything that can be checked without touching a device: unknown keys, wrong types,
values out of range, settings that contradict each other. Each fault is one clear error.

A file may begin with `extends: other.yaml`; it then states only what differs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from sid_scale.config.fields import (
    SETTINGS,
    Activations,
    Flag,
    Location,
    Natural,
    NetworkLocation,
    Number,
    Positive,
    PositiveNumber,
    Steps,
)
from sid_scale.config.groups import (
    AdamSettings,
    CheckpointConfig,
    EMAConfig,
    EvaluationConfig,
    HealthConfig,
    LearningRates,
    LogConfig,
    ProfileConfig,
    SnapshotConfig,
    StreamConfig,
)
from sid_scale.config.parse import (
    ConfigError,
    apply_override,
    build,
    dump_yaml,
    nearest,
    read_yaml,
)
from sid_scale.methods.settings import OBJECTIVES
from sid_scale.paths import expand

PACKAGE = Path(__file__).parents[1]
PRESETS = PACKAGE / "presets"
EMA_SNAPSHOTS = 32  # of a run that does not say: any width between is then met to 0.1 %
IN_PACKAGE = "package:"  # begins a path to a file that comes with the package


@dataclass(frozen=True, config=SETTINGS)
class RunConfig:
    """A whole run."""

    run_dir: Location
    """folder that the run writes to"""
    teacher: NetworkLocation
    """network folder of the teacher, or its name on the hub, user/repo or user/repo@revision"""
    deepspeed: Location
    """a DeepSpeed JSON: ZeRO stage 0 to 3, precision, clipping, offload"""
    total_images: Positive
    """images until the run is done"""
    batch_size: Positive = 2048
    """images of an update, over all devices"""
    micro_batch: Positive = 32
    """images at once on one device"""
    method: str = "sida"
    """sid, sida, sid2a, gdd, gdd_i"""
    objective: Any = None
    """settings of the method, see below"""
    seed: Natural = 0
    """of all randomness"""
    data: Location | None = None
    """shard folder, or its URL; sid needs none"""
    labels: Location = "histogram"
    """classes of generated images: as in the data, "uniform", or a file of classes"""
    generator_init: NetworkLocation | None = None
    """network folder, or its name on the hub, that the generator starts from instead of the
    teacher; sid2a needs one"""
    steps: Steps = 1
    """evaluations that the generator takes for an image"""
    init_sigma: PositiveNumber = 2.5
    """noise level that the generator starts from"""
    forced_weight_norm: Flag = True
    """whether the generator's weights are kept normalised"""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """of the networks in training"""
    activations: dict[str, Activations] = field(default_factory=dict)
    """by network (generator, fake_score, teacher ...), what waits for the backward pass: keep keeps
    all that is needed, checkpoint keeps block inputs and computes the rest again, offload keeps
    those in host memory, and a list of resolutions such as [64, 32] checkpoints their blocks alone;
    default keep"""
    compile_blocks: Flag = False
    """whether torch.compile makes fewer, larger kernels of each block of every network; at ZeRO
    stage 0 to 2"""
    resume: Location = "auto"
    """auto goes on from the newest sound checkpoint, or starts; never; or a checkpoint folder"""
    max_skipped: Positive = 20
    """updates in a row that may be skipped for non-finite gradients"""
    collective_timeout_seconds: PositiveNumber = 600
    """a rank that does not answer for so long ends all"""
    stop_timeout_seconds: PositiveNumber = 600
    """from a request to stop to a forced end"""
    learning_rate: LearningRates = field(default_factory=LearningRates)
    adam: AdamSettings = field(default_factory=AdamSettings)
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    log: LogConfig = field(default_factory=LogConfig)
    profile: ProfileConfig | None = None
    """writes a trace and a memory snapshot of a few iterations to run_dir/profile; null: no"""
    health: HealthConfig = field(default_factory=HealthConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def learning_rate_scale(self, images_seen: int) -> float:
        """Share of the learning rates that holds by now."""
        ramp = self.learning_rate.ramp_down_images
        return min(1.0, (self.total_images - images_seen) / ramp) if ramp else 1.0

    @property
    def ema_snapshot_images(self) -> int:
        """Images between two snapshots of the averages of `ema.relative_widths`."""
        return self.ema.snapshot_every_images or max(1, self.total_images // EMA_SNAPSHOTS)

    def activations_of(self, networks: Iterable[str]) -> dict[str, Activations]:
        """What waits for the backward pass of each network, by name.

        Raises:
            ConfigError: `activations` has a key that is none of them.
        """
        known: dict[str, Activations] = dict.fromkeys(networks, "keep")
        for name in self.activations:
            if name not in known:
                raise ConfigError(
                    f"unknown key activations.{name}; the networks of method {self.method} are: "
                    f"{', '.join(known)}"
                )
        return {**known, **self.activations}

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
                f"{_listed(batches)}{self._nearest_worlds(world_size)}"
            )
        return self.batch_size // share

    def _nearest_worlds(self, world_size: int) -> str:
        """Numbers of devices that batch_size and micro_batch, left as they are, allow."""
        if self.batch_size % self.micro_batch:
            return ""
        micro_batches = self.batch_size // self.micro_batch
        fitting = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
        nearest_two = sorted(sorted(fitting, key=lambda n: abs(n - world_size))[:2])
        return f". With these two, the nearest numbers of devices: {_listed(nearest_two)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run described by a YAML file, or a preset's name, and `key=value` overrides.

    Raises:
        ConfigError: see the module's docstring.
    """
    settings = read_yaml(_find(source))
    for override in overrides:
        apply_override(settings, override)
    method = settings.get("method", RunConfig.method)
    if not isinstance(method, str) or method not in OBJECTIVES:
        choices = list(OBJECTIVES)
        hint = nearest(str(method), choices)
        raise ConfigError(f"method: {method!r} is none of {', '.join(choices)}{hint}")
    settings = _with_package_paths(settings)
    objective: Any = build(OBJECTIVES[method], settings.get("objective", {}), "objective.")
    config = build(RunConfig, {**settings, "objective": objective})
    config.accumulation(world_size=1)
    if config.profile is not None and config.profile.at_images >= config.total_images:
        raise ConfigError(
            f"profile.at_images {config.profile.at_images} is not below total_images "
            f"{config.total_images}: the run would end before"
        )
    if hasattr(objective, "check"):
        objective.check(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return dump_yaml(config)


def preset_names() -> list[str]:
    """Names that `load_config` takes in place of a path."""
    return sorted(path.stem for path in PRESETS.glob("[!_]*.yaml"))


def _with_package_paths(settings: Any) -> Any:
    """Settings in which `package:demo/assets/teacher` is a path; all else is as it was."""
    if isinstance(settings, dict):
        return {key: _with_package_paths(value) for key, value in settings.items()}
    if isinstance(settings, str) and settings.startswith(IN_PACKAGE):
        return str(PACKAGE / settings.removeprefix(IN_PACKAGE))
    return settings


def _find(source: str | Path) -> Path:
    try:
        source = expand(str(source))
    except ValueError as error:
        raise ConfigError(f"config: {source}: {error}") from error
    for path in (Path(source), PRESETS / f"{source}.yaml"):
        if path.is_file():
            return path
    hint = nearest(str(source), preset_names())
    raise ConfigError(f"config: {source} is neither a file nor a preset{hint}")
