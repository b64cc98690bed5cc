"""What a run will need and how long it may take, in lines to read."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_scale.config.fields import OnHub
from sid_scale.config.networks import map_networks
from sid_scale.config.run import RunConfig
from sid_scale.estimate.decoder import decoder
from sid_scale.estimate.roofline import IterationTime, Rates, iteration_time
from sid_scale.estimate.state import ESTIMATES, GPUMemory, Sharding, gpu_memory
from sid_scale.estimate.step import StepCount, build_networks, count_step
from sid_scale.estimate.traffic import (
    checkpoint_bytes,
    communication,
    host_bytes,
    snapshot_bytes,
)
from sid_scale.hub.folders import local_folders
from sid_scale.hub.names import is_name
from sid_scale.methods import build_method
from sid_scale.networks import Architecture
from sid_scale.networks.folder import CheckpointError, read_description
from sid_scale.networks.guides import check_guide_architecture
from sid_scale.networks.teachers import published_architecture
from sid_scale.zero.settings import DeepSpeedSettings, settings_of

REMEDIES = (
    "take, under activations, generator: checkpoint (then the other networks that have blocks), a "
    "smaller micro_batch, more GPUs or a higher ZeRO stage"
)
# Bytes of networks that judge or decode, in float32.
VAE, INCEPTION, DINOV2 = 0.335e9, 0.096e9, 1.22e9


@dataclass(frozen=True)
class Plan:
    """A run on given GPUs, counted."""

    config: RunConfig
    settings: DeepSpeedSettings
    nodes: int
    gpus_per_node: int
    sharding: Sharding
    count: StepCount
    memory: GPUMemory
    time: IterationTime

    @property
    def accumulation(self) -> int:
        return self.config.accumulation(self.sharding.ranks)


def make_plan(
    config: RunConfig, nodes: int, gpus_per_node: int, rates: Rates | None = None
) -> Plan:
    """Counts a run.

    Raises:
        SidScaleError: the batch does not divide, the DeepSpeed JSON or the teacher is unusable.
    """
    accumulation = config.accumulation(nodes * gpus_per_node)
    settings = settings_of(config, accumulation)
    config = map_networks(config, _counted_folder)
    return _plan(config, settings, nodes, gpus_per_node, rates or Rates())


def at_stage(plan: Plan, stage: int) -> Plan:
    """The same run at another ZeRO stage; what that stage refuses is left out of the JSON."""
    config = copy.deepcopy(plan.settings.config)
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = stage
    if stage < 3:
        zero.pop("offload_param", None)
    if stage < 2:
        config.pop("data_types", None)
    if stage < 1:
        zero.pop("offload_optimizer", None)
    settings = dataclasses.replace(plan.settings, config=config, stage=stage)
    # Stages differ in what the networks are stored in, and that is float32 at stage 0 alone.
    count = plan.count if bool(stage) == bool(plan.settings.stage) else None
    return _plan(plan.config, settings, plan.nodes, plan.gpus_per_node, plan.time.rates, count)


def _plan(
    config: RunConfig,
    settings: DeepSpeedSettings,
    nodes: int,
    gpus_per_node: int,
    rates: Rates,
    count: StepCount | None = None,
) -> Plan:
    architecture, codec = described_teacher(config.teacher)
    method = build_method(config, architecture)
    guides = {}
    for name, folder in method.guides().items():
        guides[name], _ = described_teacher(str(folder), f"objective.{name}")
        check_guide_architecture(architecture, guides[name], folder)
    method.check_guides(guides)
    networks = build_networks(
        method, architecture, guides, config, settings.stage, settings.compute_dtype
    )
    averages = 1 + len(config.ema.relative_widths or ())
    sharding = Sharding.of(networks, settings, nodes * gpus_per_node, averages)
    decode = decoder(codec, architecture.sample_shape[0], Path(config.teacher))
    count = count or count_step(
        method,
        networks,
        architecture,
        config,
        decode,
        config.accumulation(nodes * gpus_per_node),
    )
    memory = gpu_memory(sharding, count, evaluation_bytes(config, codec, method.decodes))
    time = iteration_time(config, sharding, count, nodes, rates)
    return Plan(config, settings, nodes, gpus_per_node, sharding, count, memory, time)


def _counted_folder(key: str, value: str, what: OnHub) -> str:
    """The folder of a network that is counted, fetched if it is on the hub alone; a published name
    serves as it is."""
    counted = key in ("teacher", "objective.guide") and is_name(value)
    if not counted or published_architecture(Path(value).name) is not None:
        return value
    return str(local_folders({key: value})[key])


def described_teacher(
    teacher: str, setting: str = "teacher"
) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and codec of a network folder or, while that is not there, of the published name
    that it bears.

    Args:
        setting: that names it, for errors.

    Raises:
        CheckpointError: neither.
    """
    if not Path(teacher).exists():
        architecture = published_architecture(Path(teacher).name)
        if architecture is None:
            raise CheckpointError(f"{setting}: there is no {teacher}, nor is that a published name")
        in_pixels = architecture.sample_shape[0] == 3
        return architecture, {"kind": "identity" if in_pixels else "vae"}
    description = read_description(teacher)
    return description.architecture, description.codec


def evaluation_bytes(config: RunConfig, codec: dict[str, Any], decodes: bool = False) -> float:
    """Bytes of networks that stay on a GPU to decode and judge samples: the VAE, on the first GPU
    alone unless samples are evaluated or the loss decodes, and detectors on each.

    Args:
        decodes: whether the loss does.
    """
    evaluates = bool(config.evaluation.every_images)
    decodes = bool(decodes or evaluates or config.log.samples_every_images)
    nbytes = VAE if decodes and codec["kind"] == "vae" else 0.0
    if evaluates:
        dinov2 = [metric for metric in config.evaluation.metrics if "dinov2" in metric]
        nbytes += DINOV2 * bool(dinov2) + INCEPTION * (len(config.evaluation.metrics) > len(dinov2))
    return nbytes


def describe(plan: Plan, memory_limit: float) -> tuple[str, bool]:
    """The plan in lines to read, and whether it fits GPUs of `memory_limit` gigabytes."""
    fits = plan.memory.total / 1e9 <= memory_limit
    lines = [
        *_layout(plan),
        "expected memory on each GPU:",
        *_memory(plan),
        f"  {'total':<12}{plan.memory.total / 1e9:8.2f} GB of {memory_limit:g}: "
        f"{'fits' if fits else f'DOES NOT FIT: {REMEDIES}'}",
        *_surroundings(plan),
        *describe_time(plan),
    ]
    return "\n".join(lines), fits


def _layout(plan: Plan) -> list[str]:
    config, dtype = plan.config, str(plan.settings.compute_dtype).removeprefix("torch.")
    return [
        f"{plan.nodes} nodes x {plan.gpus_per_node} GPUs, ZeRO {plan.settings.stage}, {dtype}",
        f"batch {config.batch_size} = micro-batch {config.micro_batch} x accumulation "
        f"{plan.accumulation} x {plan.sharding.ranks} GPUs",
        *_trained_in_part(plan.sharding),
    ]


def _trained_in_part(sharding: Sharding) -> Iterator[str]:
    """A line for each network of which weights stay frozen."""
    for part in sharding.parts:
        for role, frozen in part.frozen.items():
            if frozen:
                trained = part.parameters[role]
                yield f"{role}: {trained:,} of {trained + frozen:,} parameters are trained"


def _memory(plan: Plan) -> list[str]:
    notes = dict.fromkeys(ESTIMATES, "  (estimate)")
    update, part = plan.count.largest_phase
    notes["activations"] = f"  (most in: {update} update, {part})"
    return [
        f"  {name:<12}{nbytes / 1e9:8.2f} GB{notes.get(name, '')}"
        for name, nbytes in dataclasses.asdict(plan.memory).items()
    ]


def _surroundings(plan: Plan) -> list[str]:
    """A node's memory, the disk, the network."""
    s = plan.sharding
    host = host_bytes(s, plan.gpus_per_node, async_save=plan.config.checkpoint.async_save)
    host = {name: nbytes for name, nbytes in host.items() if nbytes}
    parts = ", ".join(f"{name} {nbytes / 1e9:.1f}" for name, nbytes in host.items())
    sent = communication(s, plan.count, plan.accumulation)
    nbytes = sent.per_iteration(plan.accumulation)
    return [
        f"memory of each node: {sum(host.values()) / 1e9:.1f} GB of state"
        + (f" ({parts})" if host else ""),
        f"a checkpoint: {checkpoint_bytes(s) / 1e9:.1f} GB",
        *_snapshots(plan),
        f"sent by each GPU: {nbytes / 1e9:.1f} GB an iteration"
        + (f", and {sent.host / 1e9:.1f} GB to and from its node's memory" if sent.host else ""),
    ]


def _snapshots(plan: Plan) -> list[str]:
    """What the snapshots of averages of other widths take of the disk by the end."""
    nbytes = snapshot_bytes(plan.sharding)
    if not nbytes:
        return []
    every = max(plan.config.ema_snapshot_images, plan.config.batch_size)
    count = math.ceil(plan.config.total_images / every)
    return [
        f"snapshots of {plan.sharding.averages - 1} averages: {count} of {nbytes / 1e9:.1f} GB, "
        f"{count * nbytes / 1e9:,.1f} GB by the end"
    ]


def describe_time(plan: Plan) -> list[str]:
    """Work and time, with what they rest on."""
    time, rates, config = plan.time, plan.time.rates, plan.config
    hours = time.gpu_hours(config.total_images)
    terms = ", ".join(f"{name} {seconds:.2f}" for name, seconds in time.terms.items())
    return [
        f"work: {plan.count.total.flop / plan.count.samples / 1e12:.3g} TFLOP an image",
        f"an iteration: {time.seconds:.2f} s by counts and assumed rates ({terms}; most: "
        f"{time.dominant})",
        f"{time.images_per_second:,.0f} images a second, {time.mfu:.0%} of the GPUs' peak; "
        f"{config.total_images:,} images are {hours:,.0f} GPU hours",
        f"assumed: {rates.tflops:g} TFLOP/s in half precision ({rates.float32_tflops:g} in "
        f"float32) of {rates.peak_tflops:g}, {rates.memory_tb_s:g} TB/s of memory, "
        f"{rates.launch_us:g} us a kernel, {rates.node_gb_s:g} GB/s in a node and "
        f"{rates.network_gb_s:g} between nodes",
    ]
