"""From a config to everything that a run needs, checked before the first iteration."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sid_scale.codecs import Codec, fetch_once_a_node, open_codec
from sid_scale.config.networks import networks_on_every_node
from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig
from sid_scale.data.labels import LabelStream, label_histogram
from sid_scale.data.stream import SampleStream
from sid_scale.diffusion.noise import keyed_seed
from sid_scale.distill.ahead import ReadAhead
from sid_scale.distill.blocks import check_blocks, prepare_blocks
from sid_scale.distill.frozen import Frozen, frozen_names, frozen_of
from sid_scale.distill.inputs import check_data, check_start, load_guides, load_start
from sid_scale.distill.provenance import compatibility_of, provenance_of
from sid_scale.health.own_time import OwnTime
from sid_scale.methods import GENERATOR, TEACHER, Method, Role, build_method
from sid_scale.networks import Architecture
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.folder import NetworkFolder
from sid_scale.ranks import Ranks
from sid_scale.seeding import seeded
from sid_scale.zero.checkpoint import TrainingState
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.settings import DeepSpeedSettings, exact, settings_of


@dataclass
class Progress:
    """What has happened so far; saved in every checkpoint."""

    images_seen: int = 0
    skipped_updates: int = 0
    skipped_samples: int = 0  # bad ones, of this rank; after a resume the first has all ranks'
    positions: dict[str, int] = field(default_factory=dict)  # role -> samples taken of its stream
    # role -> its updates skipped since the last that was not; starts anew on resume
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """A run, built."""

    config: RunConfig
    ranks: Ranks
    settings: DeepSpeedSettings
    accumulation: int
    method: Method
    roles: dict[str, Role]
    networks: dict[str, ShardedNetwork]  # by role
    architectures: dict[str, Architecture]  # by role, of copies of the teacher; without dropout
    architecture: Architecture  # the teacher's
    fixed: dict[str, nn.Module]  # networks that are not trained, by name
    ema: ShardedEMA  # of the generator: what is evaluated and published
    other_emas: dict[float, ShardedEMA]  # those of `ema.relative_widths`, for snapshots
    frozen: dict[str, Frozen]  # weights that stay as they are, by role that has some
    codec: Codec
    provenance: dict[str, Any]  # what a generator folder says of where it comes from
    compatibility: dict[str, Any]  # what a resumed run must have in common with the one before
    histogram: list[int]  # how often each class occurs among generated labels; [] without classes
    progress: Progress
    own_time: OwnTime  # of this rank, without what it waits for the others
    saved_at: int | None = None  # images seen in the last checkpoint written or read

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def generator(self) -> ShardedNetwork:
        return self.networks[GENERATOR]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see."""
        return self.architecture.sample_shape

    @property
    def reads_real(self) -> bool:
        """Whether some role's updates read real images."""
        return any(role.reads_real for role in self.roles.values())

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
        for name, role in self.roles.items():
            self.networks[name].learning_rate = scale * role.learning_rate

    @property
    def learning_rates(self) -> dict[str, float]:
        return {name: network.learning_rate for name, network in self.networks.items()}

    @property
    def state(self) -> TrainingState:
        """What a checkpoint covers."""
        return TrainingState(
            networks=self.networks,
            emas={GENERATOR: self.ema},
            other_emas={GENERATOR: self.other_emas},
        )

    @contextmanager
    def open_streams(self) -> Iterator[dict[str, ReadAhead]]:
        """What each role's updates read, from where the run is: real images, or for a role that
        reads none conditions alone; and their noise."""
        with ExitStack() as stack:
            streams = {}
            for name, role in self.roles.items():
                stream = self._open_stream(role)
                streams[name] = ReadAhead(stream, self.config.seed, name, self.ranks.device)
                stack.callback(streams[name].close)
            yield streams

    def _open_stream(self, role: Role) -> SampleStream | LabelStream:
        config = self.config
        place = {
            "global_batch": config.batch_size,
            "rank": self.ranks.rank,
            "world_size": self.ranks.world_size,
            "micro_batch": config.micro_batch,
            "start": self.progress.positions[role.name],
        }
        if role.reads_real:
            assert config.data is not None  # `build_run` has refused that
            return SampleStream(config.data, seed=config.seed, settings=config.stream, **place)
        seed = keyed_seed(config.seed, f"{role.name} labels", 0)
        return LabelStream(self.histogram, seed=seed, **place)


def build_run(config: RunConfig, ranks: Ranks) -> Run:
    """Reads every file that the run depends on and builds the engines. Collective.

    Raises:
        SidScaleError: a file or setting cannot be used; says which and what to do.
    """
    # Files, compared with each other.
    config = networks_on_every_node(config)
    accumulation = config.accumulation(ranks.world_size)
    settings = settings_of(config, accumulation)
    source = load_start("teacher", config.teacher)
    start = source
    if config.generator_init is not None:
        start = load_start("generator_init", config.generator_init)
    method = build_method(config, source.architecture)
    roles = {role.name: role for role in method.roles()}
    check_start(config, roles[GENERATOR], source, start)
    if config.data is None and any(role.reads_real for role in roles.values()):
        raise ConfigError(f"method {config.method} learns from real data: set data")
    codec = open_codec(source.codec, beside=config.teacher)
    guides = load_guides(method, source, codec)
    beside = {name: guide.architecture for name, guide in guides.items()}
    method.check_guides(beside)
    check_blocks(config, method, source.architecture, beside, ranks.device)
    names = frozen_names(roles.values(), source.architecture)
    if config.log.samples_every_images or method.decodes:
        fetch_once_a_node(codec)
        codec.check()
    index = check_data(config, source, codec)
    fixed = dict(method.fixed_networks(ranks.device))
    provenance = provenance_of(config, source, start, method.files(), method.guides())
    frozen = frozen_of(config, names, source, start, provenance["teacher_sha256"])

    # Networks: every role's, and those that are frozen for good.
    copies = {name: role for name, role in roles.items() if role.build is None}
    architectures = {name: r.architecture(source.architecture) for name, r in copies.items()}
    networks = {}
    for name, role in roles.items():
        folder = start if name == GENERATOR else source
        networks[name] = _build(role, folder, names.get(name, ()), config, settings, ranks.device)
    if method.uses_teacher:
        guides[TEACHER] = source
    for name, folder in guides.items():
        fixed[name] = folder.build(settings.compute_dtype, ranks.device)
        prepare_blocks(fixed[name], name, config)
    own_time = OwnTime(ranks.device)
    for network in networks.values():
        own_time.follow(network.module, gathered=network.is_gathered)
    for module in fixed.values():
        own_time.follow(module, gathered=False)
    return Run(
        config,
        ranks,
        settings,
        accumulation,
        method,
        roles,
        networks,
        architectures,
        source.architecture,
        fixed,
        ShardedEMA(networks[GENERATOR]),
        {width: ShardedEMA(networks[GENERATOR]) for width in config.ema.relative_widths or ()},
        frozen,
        codec,
        provenance,
        compatibility_of(config, source.architecture, roles.values(), frozen, index, provenance),
        label_histogram(config.labels, source.architecture.label_dim, index),
        Progress(positions=dict.fromkeys(roles, 0)),
        own_time,
    )


def _build(
    role: Role,
    folder: NetworkFolder,
    frozen: Collection[str],
    config: RunConfig,
    settings: DeepSpeedSettings,
    device: torch.device,
) -> ShardedNetwork:
    """A role's network, on its device; masters and frozen weights are filled from the folder's
    file."""
    architecture = replace(role.architecture(folder.architecture), dropout=config.dropout)
    settings = exact(settings) if role.exact else settings
    if role.build is None:
        folder = folder.with_architecture(architecture)
        stored = settings.compute_dtype if settings.stage else torch.float32
        network: nn.Module = folder.build_zero(
            settings.compute_dtype, stored, device, frozen=frozen
        )
        weights = folder.state
    else:
        with seeded(keyed_seed(config.seed, role.name, 0)):
            network = role.build(architecture)
        weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    scales = network.forward_scales() if isinstance(network, Denoiser) else {}
    if role.build is not None:
        for name, scale in scales.items():  # its rows are as the forward pass reads them
            weights[name] /= scale
    prepare_blocks(network.train(), role.name, config)
    return ShardedNetwork(
        network,
        settings,
        AdamConfig(role.learning_rate, role.betas or config.adam.betas, config.adam.eps),
        weights,
        frozen=frozen,
        forward_scales=scales,
        forced_norm=role.forced_norm,
        clip_value=role.clip_value,
    )
