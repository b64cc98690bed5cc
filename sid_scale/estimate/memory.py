"""What a run will need of each GPU's memory.

State is counted: float32 masters, Adam, average, weights and gradients, shared out as the ZeRO
stage does it, and a whole teacher. Activations are what autograd keeps for the backward pass,
found by a forward pass without numbers ("meta" tensors); these, DeepSpeed's buffers and a margin
are estimates. Nothing is trained, and no GPU is needed.
"""

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from sid_scale.config.run import RunConfig
from sid_scale.estimate.flops import ASSUMED_TFLOPS, flop_per_image, gpu_hours
from sid_scale.methods import GENERATOR, TEACHER, Method, Pass, Role, build_method
from sid_scale.networks import Architecture
from sid_scale.networks.checkpoint_activations import Activations, checkpoint_activations
from sid_scale.networks.edm2.sizes import SIZES, imagenet512
from sid_scale.networks.folder import CheckpointError, read_description
from sid_scale.zero.settings import DeepSpeedSettings, settings_of

FLOAT32 = 4  # bytes
ADAM = 2 * FLOAT32  # two moments
MARGIN = 0.1  # of everything: workspaces, fragments, CUDA's own
CUDA_CONTEXT = 1.0  # GB
# DeepSpeed's defaults, in elements.
BUCKET = 5e8  # reduced or gathered at once at stages 1 and 2
LIVE = 1e9  # gathered at stage 3

ESTIMATES = ("buffers", "activations", "margin")
REMEDIES = (
    "take more GPUs, a smaller micro_batch, a higher ZeRO stage or, under activations, "
    "generator: checkpoint (then fake_score, then teacher)"
)


@dataclass(frozen=True)
class GPUMemory:
    """Gigabytes (1e9 bytes) on one GPU."""

    weights: float  # of the trained networks, as they compute
    gradients: float
    optimizer: float  # float32 masters and Adam
    average: float
    teacher: float
    buffers: float  # estimate
    activations: float  # estimate
    margin: float  # estimate

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


def expected_memory(
    method: Method,
    architecture: Architecture,
    config: RunConfig,
    settings: DeepSpeedSettings,
    world_size: int,
) -> GPUMemory:
    """What a run on `world_size` GPUs needs of each; `architecture` is the teacher's."""
    stage, ranks = settings.stage, world_size
    compute = settings.compute_dtype.itemsize
    counts = {r.name: _parameters(r, architecture) for r in method.roles()}
    total, largest = sum(counts.values()), max(counts.values())
    on_host = settings.offloads_optimizer
    if stage == 0:
        # The weights are the masters; one float32 gradient each.
        weights, masters, gradients, shares, buffers = FLOAT32, 0, FLOAT32, 1, 0.0
    else:
        weights, masters, gradients, shares = compute, FLOAT32, compute, ranks
        buffers = 2 * min(BUCKET, largest) * compute
        if stage == 3:
            buffers += min(LIVE, total) * compute
    grad_dtype = settings.config.get("data_types", {}).get("grad_accum_dtype")
    if stage and grad_dtype == "fp32":
        gradients = FLOAT32
    sharded_weights = total * weights / (ranks if stage == 3 else 1)
    sharded_gradients = total * gradients / (ranks if stage >= 2 else 1)
    numbers = {
        "weights": sharded_weights,
        "gradients": 0.0 if on_host and stage >= 2 else sharded_gradients,
        "optimizer": 0.0 if on_host else total * (masters + ADAM) / shares,
        "average": 0.0 if on_host else counts[GENERATOR] * FLOAT32 / shares,
        "teacher": _teacher_bytes(architecture, settings.compute_dtype),
        "buffers": buffers,
        "activations": activations(method, architecture, config, settings),
    }
    numbers = {name: value / 1e9 for name, value in numbers.items()}
    return GPUMemory(**numbers, margin=CUDA_CONTEXT + MARGIN * sum(numbers.values()))


def activations(
    method: Method, architecture: Architecture, config: RunConfig, settings: DeepSpeedSettings
) -> float:
    """Bytes that the largest update keeps for its backward pass.

    These are of all passes with a gradient: of a network in training, and of the frozen ones that
    the gradient flows through.
    """
    roles = {role.name: role for role in method.roles()}
    held = config.activations_of([*roles, TEACHER])
    kept: dict[str, float] = dict.fromkeys(roles, 0.0)
    for p in method.passes():
        if p.gradient != "none" and p.times:
            of_teacher = p.network == TEACHER
            kept[p.update] += _kept(
                architecture if of_teacher else roles[p.network].architecture(architecture),
                p,
                config,
                settings.compute_dtype,
                # What is offloaded is counted as if it were checkpointed: a little too much.
                "checkpoint" if held[p.network] == "offload" else held[p.network],
                stored_exact=settings.stage == 0 and not of_teacher,
            )
    return max(kept.values())


def _kept(
    architecture: Architecture,
    p: Pass,
    config: RunConfig,
    dtype: torch.dtype,
    held: Activations,
    *,
    stored_exact: bool,
) -> float:
    """Bytes that a forward pass of a micro-batch keeps, weights themselves aside.

    Args:
        dtype: what the network computes in, and its weights are stored in.
        stored_exact: whether weights are stored in float32 all the same.
    """
    samples = config.micro_batch
    with torch.device("meta"):
        architecture = dataclasses.replace(architecture, dropout=config.dropout)
        network = architecture.build(dtype).requires_grad_(p.gradient == "weights")
        if not stored_exact and dtype != torch.float32:
            network.to(dtype)
        checkpoint_activations(network, held)
        images = torch.empty(samples, *architecture.sample_shape, requires_grad=True)
        sigma = torch.empty(samples, 1, 1, 1)
        classes = torch.empty(samples, dtype=torch.int64) if architecture.label_dim else None
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(_keep_in(kept), lambda tensor: tensor):
            network(images, sigma, classes, decode=p.decode)
    own = {w.untyped_storage()._cdata for w in network.parameters()}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return float(sum(nbytes for which, nbytes in storages.items() if which not in own))


def _keep_in(kept: list[Tensor]):
    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return keep


def _parameters(role: Role, teacher: Architecture) -> int:
    with torch.device("meta"):
        architecture = role.architecture(teacher)
        network = architecture.build() if role.build is None else role.build(architecture)
        return sum(p.numel() for p in network.parameters())


def _teacher_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        teacher = architecture.build(dtype)
        teacher.store_weights_in(dtype)
        return sum(p.nbytes for p in teacher.parameters())


def teacher_architecture(teacher: str) -> Architecture:
    """Of a network folder or, while that is not there, of the published name that it bears.

    Raises:
        CheckpointError: neither.
    """
    if not Path(teacher).exists():
        for size in SIZES:
            if Path(teacher).name.startswith(f"edm2-img512-{size}-"):
                return imagenet512(size)
        raise CheckpointError(f"teacher: there is no {teacher}, nor is that a published name")
    return read_description(teacher).architecture


def estimate(
    config: RunConfig, nodes: int, gpus_per_node: int, gpu_memory: float
) -> tuple[str, bool]:
    """What a run needs, in lines to read, and whether it fits GPUs of `gpu_memory` gigabytes.

    Raises:
        SidScaleError: the batch does not divide, the DeepSpeed JSON or the teacher is unusable.
    """
    world_size = nodes * gpus_per_node
    accumulation = config.accumulation(world_size)
    settings = settings_of(config, accumulation)
    architecture = teacher_architecture(config.teacher)
    method = build_method(config, architecture)
    memory = expected_memory(method, architecture, config, settings, world_size)
    fits = memory.total <= gpu_memory
    verdict = "fits" if fits else f"DOES NOT FIT: {REMEDIES}"
    dtype = str(settings.compute_dtype).removeprefix("torch.")
    lines = [
        f"{nodes} nodes x {gpus_per_node} GPUs, ZeRO {settings.stage}, {dtype}",
        f"batch {config.batch_size} = micro-batch {config.micro_batch} x accumulation "
        f"{accumulation} x {world_size} GPUs",
        "expected memory on each GPU:",
    ]
    for name, gigabytes in dataclasses.asdict(memory).items():
        lines.append(f"  {name:<12}{gigabytes:8.2f} GB{_mark(name)}")
    lines.append(f"  {'total':<12}{memory.total:8.2f} GB of {gpu_memory:g}: {verdict}")
    flop = flop_per_image(method, architecture)
    lines.append(
        f"work: {flop / 1e12:.3g} TFLOP an image; {config.total_images:,} images are "
        f"{gpu_hours(flop * config.total_images):,.0f} GPU hours at {ASSUMED_TFLOPS:.0f} TFLOP/s "
        "(35 % of an H100's: an assumption)"
    )
    return "\n".join(lines), fits


def _mark(name: str) -> str:
    return "  (estimate)" if name in ESTIMATES else ""
