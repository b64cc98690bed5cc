"""The groups of a run's settings that every method has; `config/run.py` puts them together."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sid_scale.config.fields import (
    SETTINGS,
    Betas,
    Flag,
    Integer,
    Location,
    Locations,
    Natural,
    NetworkLocation,
    NotNegative,
    Number,
    Positive,
    PositiveNumber,
    RelativeWidth,
    RelativeWidths,
    Texts,
    WeightsLocation,
)


@dataclass(frozen=True, config=SETTINGS)
class LearningRates:
    """Adam's learning rates: constant, as published, or falling to zero at the end."""

    generator: PositiveNumber = 5e-5
    """learning rate of the generator; other networks have theirs in `objective`"""
    ramp_down_images: Natural = 0
    """over so many images at the end all rates fall linearly to zero: a short run has no time to
    average its noise away"""


@dataclass(frozen=True, config=SETTINGS)
class AdamSettings:
    """Adam of all networks."""

    betas: Betas = (0.0, 0.999)
    """decay of the two moments"""
    generator_betas: Betas | None = None
    """of the generator alone; null: as all"""
    eps: Number | None = None
    """added to the divisor; null is 1e-8, and 1e-6 in half precision"""


@dataclass(frozen=True, config=SETTINGS)
class EMAConfig:
    """Average of the generator's weights."""

    half_life: PositiveNumber = 2_000_000
    """half-life in images"""
    ramp_up: NotNegative = 0.05
    """early on, the half-life is this share of the images seen; 0: no ramp-up"""
    relative_width: RelativeWidth | None = None
    """makes it EDM2's power-function average of this relative width instead; try 0.1"""
    relative_widths: RelativeWidths | None = None
    """relative widths of two or more power-function averages that are kept beside that one, for
    `sid-scale phema`; try [0.05, 0.1]"""
    snapshot_every_images: Positive | None = None
    """images between two snapshots of these; null: a 32nd of total_images; one more at the end"""


@dataclass(frozen=True, config=SETTINGS)
class CheckpointConfig:
    """When the whole training state is written, and which checkpoints stay."""

    every_images: Positive = 1_000_000
    """images between two checkpoints"""
    keep: Positive = 2
    """how many of the newest stay"""
    keep_every: Natural = 0
    """of every so many images the first stays, too; 0: none"""
    async_save: Flag = True
    """training waits only for a copy to host memory, where that has room for one"""


@dataclass(frozen=True, config=SETTINGS)
class StreamConfig:
    """How real samples are read; nothing here changes which sample comes when."""

    cache_dir: Location | None = None
    """shards are copied there before they are read; best on a disk of the node's own"""
    cache_gb: PositiveNumber = 200.0
    """size of the cache; the least recently used shards go"""
    prefetch: Positive = 4
    """micro-batches that wait ready"""
    workers: Positive = 4
    """threads that fetch what is not a local file"""
    retries: Natural = 5
    """of what is not a local file"""
    backoff_seconds: NotNegative = 1.0
    """before the first retry; doubled before each other"""
    timeout_seconds: PositiveNumber = 60.0
    """without a byte"""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """what a sample that cannot be read does; skip takes its neighbour instead"""
    xflip: Flag = False
    """whether real images in pixels are mirrored, left to right, at even odds; those that a VAE
    encodes can be stored mirrored as well (`sid-scale encode --flip`)"""


@dataclass(frozen=True, config=SETTINGS)
class SnapshotConfig:
    """When the averaged generator is written as a network folder."""

    every_images: Natural = 0
    """images between two snapshots; 0: only at the end"""


@dataclass(frozen=True, config=SETTINGS)
class WandbConfig:
    """The run on Weights & Biases, which the package wandb logs to."""

    project: str
    """project that the run belongs to"""
    entity: str | None = None
    """user or team that the project belongs to; null: the account's own"""
    name: str | None = None
    """of the run; null: that of run_dir"""
    mode: Literal["online", "offline", "disabled"] | None = None
    """offline writes to run_dir/wandb alone, for `wandb sync`; null: as WANDB_MODE says, else
    online"""


@dataclass(frozen=True, config=SETTINGS)
class LogConfig:
    """When metrics and sample grids are logged."""

    every_images: Positive = 20_480
    """images between two records"""
    samples_every_images: Natural = 500_000
    """images between two sample grids; 0: none"""
    samples: Positive = 36
    """images in a grid"""
    peak_tflops: PositiveNumber | None = None
    """TFLOP/s of a device that `mfu` is the share of; null: as measured at the start, with matrix
    products in the dtype that the networks compute in"""
    wandb: WandbConfig | None = None
    """logs to Weights & Biases, too, all that TensorBoard shows; null: no"""


@dataclass(frozen=True, config=SETTINGS)
class ProfileConfig:
    """Which iterations PyTorch's profiler looks at."""

    at_images: Natural
    """images seen when the first of them begins"""
    steps: Annotated[Positive, Field(le=20)] = 3
    """iterations"""
    memory: Flag = True
    """whether a memory snapshot is written, too; of GPUs alone"""
    ranks: Literal["first", "all"] = "first"
    """ranks that write one"""


@dataclass(frozen=True, config=SETTINGS)
class HealthConfig:
    """How sick nodes are found."""

    check_devices: Flag = True
    """whether every device multiplies, copies and sums known numbers before a run begins; one that
    does so wrongly, or a GPU with far slower memory than the others, ends it"""
    straggler_factor: Annotated[Number, Field(gt=1)] = 1.5
    """a rank is slow whose own time of an iteration (data, forward passes) is above so many times
    the median of all ranks"""
    straggler_intervals: Positive = 3
    """a rank that is slow in so many logging intervals in a row is called a straggler in the log"""


@dataclass(frozen=True, config=SETTINGS)
class EvaluationConfig:
    """When the averaged generator is measured, and by what."""

    every_images: Natural = 0
    """images between two evaluations; 0: never"""
    num: Annotated[Integer, Field(ge=2)] = 10_000
    """generated images"""
    first_seed: Natural = 0
    """seeds are those from here on"""
    labels: Literal["uniform", "training"] = "uniform"
    """classes of the images: all as often, which `sid-scale evaluate` does by default, or as in
    training (see `labels`)"""
    metrics: Texts = ("fid",)
    """as of `sid-scale evaluate run`"""
    reference: Locations = ()
    """files of reference statistics"""
    inception: Location | None = None
    """inception-2015-12-05.pt, or weights of pytorch-fid or torch-fidelity"""
    dinov2: NetworkLocation | None = None
    """folder of facebook/dinov2-large, or that name on the hub"""
    encoders: dict[str, WeightsLocation] = field(default_factory=dict)
    """networks of timm's: NAME or NAME@SIZE, and the safetensors file with its weights,
    or the name of a model on the hub that has it"""
    best_by: str | None = None
    """metric by which the best generator is kept; null: the first"""
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """what the VAE computes in"""
