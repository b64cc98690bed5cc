"""From a config to everything that a run needs, checked before the first iteration."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sid_scale.codecs import Codec, CodecError, open_codec
from sid_scale.config.run import RunConfig
from sid_scale.data.labels import LabelStream, label_histogram
from sid_scale.data.remote import RetryPolicy
from sid_scale.data.shards import ShardIndex, read_index
from sid_scale.data.stream import LatentStream
from sid_scale.diffusion.noise import keyed_seed
from sid_scale.distill.provenance import compatibility_of, provenance_of
from sid_scale.networks.checkpoint_activations import checkpoint_activations
from sid_scale.networks.edm2.layers import store_weights_in
from sid_scale.networks.edm2.network import EDM2, EDM2Config
from sid_scale.networks.folder import (
    CheckpointError,
    NetworkFolder,
    load_network,
)
from sid_scale.ranks import Ranks
from sid_scale.zero.checkpoint import TrainingState
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import (
    AdamConfig,
    DeepSpeedSettings,
    ShardedNetwork,
    read_deepspeed_json,
)


@dataclass
class Progress:
    """What has happened so far; saved in every checkpoint."""

    images_seen: int = 0
    skipped_updates: int = 0
    skipped_samples: int = 0  # bad ones, of this rank; after a resume the first has all ranks'
    # network -> its updates skipped since the last that was not; starts anew on resume
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """A run, built."""

    config: RunConfig
    ranks: Ranks
    settings: DeepSpeedSettings
    accumulation: int
    generator: ShardedNetwork
    fake_score: ShardedNetwork
    teacher: EDM2
    ema: ShardedEMA
    codec: Codec
    origin: dict[str, Any]  # what a generator folder says of where it comes from
    identity: dict[str, Any]  # what a resumed run must have in common with the one before
    histogram: list[int]  # how often each class occurs among generated labels
    progress: Progress = field(default_factory=Progress)
    saved_at: int | None = None  # images seen in the last checkpoint written or read

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def snapshot_folder(self) -> Path | None:
        """Where the generator of this moment is kept; None when snapshots are off."""
        if not self.config.snapshot.every_images:
            return None
        return self.folder / "snapshots" / f"{self.progress.images_seen:012d}"

    def is_due(self, every_images: int) -> bool:
        """Whether the last batch completed another `every_images` images; 0 is never."""
        seen = self.progress.images_seen
        return bool(every_images) and seen % every_images < self.config.batch_size

    def set_learning_rates(self) -> None:
        """Puts the optimizers' learning rates to what holds by now."""
        scale = self.config.learning_rate_scale(self.progress.images_seen)
        self.generator.learning_rate = scale * self.config.learning_rate.generator
        self.fake_score.learning_rate = scale * self.config.learning_rate.fake_score

    @property
    def learning_rates(self) -> dict[str, float]:
        return {
            "generator": self.generator.learning_rate,
            "fake_score": self.fake_score.learning_rate,
        }

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see."""
        architecture = self.teacher.config
        size = architecture.img_resolution
        return architecture.img_channels, size, size

    @property
    def state(self) -> TrainingState:
        """What a checkpoint covers."""
        return TrainingState(
            engines={"generator": self.generator.engine, "fake_score": self.fake_score.engine},
            emas={"generator": self.ema},
        )

    def one_hot(self, labels: Tensor) -> Tensor:
        """Class indices (N,) -> (N, label_dim) float32 on the device."""
        labels = labels.to(self.ranks.device, non_blocking=True)
        return F.one_hot(labels, self.teacher.config.label_dim).float()

    def open_data(self) -> LatentStream | LabelStream:
        """What the fake score's updates read, from where the run stands: real latents, or for
        a method that reads none just labels."""
        if self.config.adversarial:
            assert self.config.data is not None  # config/run.py has checked
            return LatentStream(
                self.config.data,
                seed=self.config.seed,
                settings=self.config.stream,
                **self._place(),
            )
        return self._labels("fake_score labels")

    def open_labels(self) -> LabelStream:
        """Labels of the generator's updates, from where the run stands."""
        return self._labels("generator labels")

    def _labels(self, purpose: str) -> LabelStream:
        seed = keyed_seed(self.config.seed, purpose, 0)
        return LabelStream(self.histogram, seed=seed, **self._place())

    def _place(self) -> dict[str, int]:
        return {
            "global_batch": self.config.batch_size,
            "rank": self.ranks.rank,
            "world_size": self.ranks.world_size,
            "micro_batch": self.config.micro_batch,
            "start": self.progress.images_seen,
        }


def build_run(config: RunConfig, ranks: Ranks) -> Run:
    """Reads every file that the run depends on and builds the engines. Collective.

    Raises:
        SidScaleError: a file or setting cannot be used; says which and what to do.
    """
    accumulation = config.accumulation(ranks.world_size)
    settings = read_deepspeed_json(config.deepspeed, config.micro_batch, accumulation)
    source = load_network(config.teacher)
    start = source
    if config.method == "sid2a":
        assert config.generator_init is not None  # config/run.py has checked
        start = load_network(config.generator_init)
    _check_networks(config, source, start)
    codec = open_codec(source.codec, beside=config.teacher)
    if config.log.samples_every_images:
        codec.check()
    index = _check_data(config, source, codec)
    origin = provenance_of(config, source, start)

    trained = dataclasses.replace(source.architecture, dropout=config.dropout)
    generator = ShardedNetwork(
        _generator(start, trained),
        settings,
        _adam(config, config.learning_rate.generator),
        forced_norm=config.forced_weight_norm.generator,
    )
    fake_score = ShardedNetwork(
        dataclasses.replace(source, architecture=trained).build(),
        settings,
        _adam(config, config.learning_rate.fake_score),
        forced_norm=config.forced_weight_norm.fake_score,
    )
    teacher = source.build(settings.compute_dtype).requires_grad_(False)
    store_weights_in(settings.compute_dtype, teacher)
    checkpoint_activations(teacher, config.teacher_activations)
    return Run(
        config,
        ranks,
        settings,
        accumulation,
        generator,
        fake_score,
        teacher.to(ranks.device),
        ShardedEMA(generator.engine),
        codec,
        origin,
        compatibility_of(source.architecture, index, origin),
        label_histogram(config.labels, source.architecture.label_dim, index),
    )


def generator_architecture(architecture: EDM2Config) -> EDM2Config:
    """A generator is its teacher without the uncertainty head, which it has no use for."""
    return dataclasses.replace(architecture, logvar_channels=0)


def _generator(start: NetworkFolder, trained: EDM2Config) -> EDM2:
    state = {k: v for k, v in start.state.items() if not k.startswith("logvar")}
    return dataclasses.replace(
        start, architecture=generator_architecture(trained), state=state
    ).build()


def _check_networks(config: RunConfig, teacher: NetworkFolder, start: NetworkFolder) -> None:
    def body(architecture: EDM2Config) -> EDM2Config:
        return dataclasses.replace(generator_architecture(architecture), dropout=0.0)

    if body(teacher.architecture) != body(start.architecture):
        raise CheckpointError(
            f"generator_init {config.generator_init} has another architecture than teacher "
            f"{config.teacher}: {body(start.architecture)} and {body(teacher.architecture)}"
        )
    objective = {"init_sigma": config.objective.init_sigma, "steps": config.steps}
    for key, value in objective.items():
        if start is not teacher and start.origin.get(key, value) != value:
            raise CheckpointError(
                f"generator_init {config.generator_init} was made with {key} "
                f"{start.origin[key]}, this run has {value}: make them the same"
            )
    if config.objective.logvar_weighting and not teacher.architecture.logvar_channels:
        raise CheckpointError(
            f"teacher {config.teacher} has no uncertainty head: set "
            "objective.logvar_weighting to false"
        )


def _check_data(config: RunConfig, teacher: NetworkFolder, codec: Codec) -> ShardIndex | None:
    """Compares the shards, if there are any, with the teacher."""
    architecture = teacher.architecture
    if config.data is None:
        return None
    patience = RetryPolicy(config.stream.retries, config.stream.backoff_seconds)
    index = read_index(config.data, patience, config.stream.timeout_seconds)
    size = architecture.img_resolution
    expected = (2 * architecture.img_channels, size, size)
    if index.sample_shape != expected or index.num_classes != architecture.label_dim:
        raise CheckpointError(
            f"data {config.data} holds samples {index.sample_shape} of {index.num_classes} "
            f"classes; teacher {config.teacher} wants {expected} of {architecture.label_dim}"
        )
    ours, theirs = codec.describe(), index.codec
    for key in ("kind", "scale", "bias"):
        if ours.get(key) != theirs.get(key):
            raise CodecError(
                f"data {config.data} was encoded with codec {key} {theirs.get(key)}; teacher "
                f"{config.teacher} expects {ours.get(key)}: encode the data again for it"
            )
    return index


def _adam(config: RunConfig, learning_rate: float) -> AdamConfig:
    return AdamConfig(learning_rate, config.adam.betas, config.adam.eps)
