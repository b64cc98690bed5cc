"""What a run holds on each GPU and each node: counted bytes of weights, gradients and optimizers.

What DeepSpeed allocates beyond the parameters was read from its sources (0.19.8): buffers that
gradients are collected in, weights gathered for a while, temporaries of an optimizer's step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from sid_scale.estimate.step import RunNetworks, StepCount
from sid_scale.methods import GENERATOR
from sid_scale.networks.denoiser import Denoiser
from sid_scale.zero.settings import DeepSpeedSettings

FLOAT32 = 4  # bytes
ADAM = 2 * FLOAT32  # two moments
MARGIN = 0.1  # of everything: workspaces, fragmentation
CUDA_CONTEXT = 1e9  # bytes; with NCCL's
# DeepSpeed's defaults, in elements.
BUCKET = 5e8  # reduced at once
LIVE = 1e9  # gathered at stage 3, of each engine
PERSISTENT = 1e5  # of a parameter that stage 3 keeps gathered

ESTIMATES = ("buffers", "margin")


@dataclass(frozen=True)
class Sharding:
    """How a run's networks are stored and shared out."""

    parameters: Mapping[str, int]  # numbers in each trained network, by role
    tensors: int  # that these are
    persistent: int  # of these numbers, in tensors that stage 3 keeps gathered
    normalised: int  # of these numbers, in tensors that the forward pass reads normalised
    normalised_tensors: int  # that those are
    fixed: int  # bytes of networks that are not trained
    settings: DeepSpeedSettings
    ranks: int

    @classmethod
    def of(cls, networks: RunNetworks, settings: DeepSpeedSettings, ranks: int) -> "Sharding":
        """`networks` are those of `build_networks`."""
        sizes = {
            name: [p.numel() for p in network.parameters()]
            for name, network in networks.trained.items()
        }
        numbers = {name: sum(of_network) for name, of_network in sizes.items()}
        tensors = sum(map(len, sizes.values()))
        zero = settings.config.get("zero_optimization", {})
        threshold = zero.get("stage3_param_persistence_threshold", PERSISTENT)
        persistent = sum(n for of_network in sizes.values() for n in of_network if n <= threshold)
        normalised = [
            network.get_parameter(name).numel()
            for network in networks.trained.values()
            if isinstance(network, Denoiser)
            for name in network.forward_scales()
        ]
        fixed = [t for n in networks.fixed.values() for t in (*n.parameters(), *n.buffers())]
        return cls(
            parameters=numbers,
            tensors=tensors,
            persistent=persistent,
            normalised=sum(normalised),
            normalised_tensors=len(normalised),
            fixed=sum(t.nbytes for t in fixed),
            settings=settings,
            ranks=ranks,
        )

    @property
    def stage(self) -> int:
        return self.settings.stage

    @property
    def total(self) -> int:
        """Parameters of all trained networks."""
        return sum(self.parameters.values())

    @property
    def largest(self) -> int:
        """Parameters of the largest trained network."""
        return max(self.parameters.values())

    @property
    def shards(self) -> int:
        """Parts that masters and optimizers are cut into."""
        return self.ranks if self.stage else 1

    @property
    def weight_bytes(self) -> int:
        """Of a parameter as the forward pass reads it."""
        return self.settings.compute_dtype.itemsize if self.stage else FLOAT32

    @property
    def gradient_bytes(self) -> int:
        """Of a parameter's gradient while it is summed over micro-batches."""
        dtype: str = self.settings.config.get("data_types", {}).get("grad_accum_dtype", "")
        return _ITEMSIZE.get(dtype, self.weight_bytes) if self.stage else FLOAT32

    @property
    def sent_bytes(self) -> int:
        """Of a parameter's gradient as ranks exchange it."""
        dtype: str = self.settings.config.get("communication_data_type", "")
        return _ITEMSIZE.get(dtype, self.weight_bytes)

    @property
    def sums_on_gpu(self) -> bool:
        """Whether gradients are summed over micro-batches on the GPU. With an offloaded optimizer
        stage 2 does so if their sum is float32 and the networks are not."""
        if self.stage < 2 or not self.offloads("optimizer"):
            return True
        return self.stage == 2 and self.gradient_bytes > self.weight_bytes

    def zero(self, key: str, default: Any) -> Any:
        """A setting of the JSON's `zero_optimization`."""
        value = self.settings.config.get("zero_optimization", {}).get(key)
        return default if value is None else value

    @property
    def overlaps_communication(self) -> bool:
        return bool(self.zero("overlap_comm", self.stage == 3))

    def offloads(self, what: str) -> bool:
        """Whether "optimizer" or "param" is in host memory."""
        return bool(self.zero(f"offload_{what}", {}).get("device", "none") != "none")


_ITEMSIZE = {
    "fp32": torch.float32.itemsize,
    "fp16": torch.float16.itemsize,
    "bf16": torch.bfloat16.itemsize,
}


@dataclass(frozen=True)
class GPUMemory:
    """Bytes on one GPU when most are in use."""

    weights: float  # of the trained networks, as they compute
    gradients: float
    optimizer: float  # float32 masters and Adam
    average: float
    fixed: float  # networks: the teacher's, and others that the method has
    evaluation: float  # VAE and detectors, on the GPU that has most of them
    buffers: float  # estimate: DeepSpeed's, while it reduces and gathers
    activations: float
    update: float  # what an optimizer's step needs beyond buffers and activations, gone by then
    margin: float  # estimate

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


def gpu_memory(sharding: Sharding, count: StepCount, evaluation: float = 0.0) -> GPUMemory:
    """What a run needs of each GPU.

    Args:
        count: of one micro-batch.
        evaluation: bytes of networks that judge or decode.
    """
    activations = float(max(count.peak.values()))
    buffers = buffer_bytes(sharding)
    numbers = {
        **state_bytes(sharding),
        "evaluation": evaluation,
        "buffers": buffers,
        "activations": activations,
        "update": max(0.0, step_bytes(sharding) - activations - buffers),
    }
    return GPUMemory(**numbers, margin=CUDA_CONTEXT + MARGIN * sum(numbers.values()))


def state_bytes(sharding: Sharding) -> dict[str, float]:
    """Bytes on one GPU of what stays from one iteration to the next; gradients at their most."""
    s = sharding
    on_host = s.offloads("optimizer")
    return {
        "weights": _weights(s) * s.weight_bytes,
        "gradients": _gradients(s) if s.sums_on_gpu else 0.0,
        "optimizer": 0.0 if on_host else s.total * (FLOAT32 + ADAM) / s.shards,
        "average": 0.0 if on_host else s.parameters[GENERATOR] * FLOAT32 / s.shards,
        "fixed": float(s.fixed),
    }


def _weights(sharding: Sharding) -> float:
    """Elements of forward weights."""
    s = sharding
    if s.stage < 3:
        return s.total
    return s.persistent + (0.0 if s.offloads("param") else s.total / s.ranks)


def _gradients(sharding: Sharding) -> float:
    """Stage 3 keeps a buffer for each network; the other stages give theirs back at the step."""
    s = sharding
    elements = s.total if s.stage == 3 else s.largest
    return elements * s.gradient_bytes / (s.ranks if s.stage >= 2 else 1)


def buffer_bytes(sharding: Sharding) -> float:
    """Bytes of DeepSpeed's buffers on one GPU during a backward pass: an estimate from above.

    Stages 1 and 2: one bucket that gradients are collected in, two if communication overlaps, and
    flat copies that are reduced. Stage 3: a bucket of each engine, what is reduced, and gathered
    weights.
    """
    s = sharding
    if not s.stage:
        return 0.0
    bucket = s.zero("reduce_bucket_size", BUCKET)
    # Flat copies, in the dtypes of the gradients and of what is sent.
    other_dtype = s.sent_bytes != s.weight_bytes
    reduced = s.sent_bytes + other_dtype * (s.weight_bytes if s.stage < 3 else s.sent_bytes)
    reduced *= min(bucket, s.largest)
    if s.stage < 3:
        buckets = 1 + s.overlaps_communication
        return float(buckets * bucket * s.weight_bytes + reduced)
    return len(s.parameters) * bucket * s.weight_bytes + reduced + gathered_bytes(s)


def gathered_bytes(sharding: Sharding) -> float:
    """Bytes of weights that stage 3 has gathered at most: what may be live of each network."""
    live = sharding.zero("stage3_max_live_parameters", LIVE)
    elements = sum(min(live, n) for n in sharding.parameters.values())
    return float(elements * sharding.weight_bytes) if sharding.stage == 3 else 0.0


def step_bytes(sharding: Sharding) -> float:
    """Bytes on one GPU that the optimizer's step of the largest network takes for a while.

    Gradients are flattened in float32, unless they are that already; forward weights are made of
    the masters in a copy.
    """
    s = sharding
    shard = s.largest * FLOAT32 / s.shards
    if s.offloads("optimizer"):
        return 0.0
    flat_gradient = 0.0 if s.stage == 0 or s.gradient_bytes == FLOAT32 else shard
    return flat_gradient + shard
