"""What a run holds on each GPU and each node: counted bytes of weights, gradients and optimizers.

What DeepSpeed allocates beyond the parameters was read from its sources (0.19.8): buffers that
gradients are collected in, weights gathered for a while, temporaries of an optimizer's step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sid_scale.estimate.step import RunNetworks, StepCount
from sid_scale.methods import GENERATOR
from sid_scale.networks.denoiser import Denoiser
from sid_scale.zero.frozen import trained_parameters
from sid_scale.zero.settings import ADAM, FLOAT32, ITEMSIZE, DeepSpeedSettings, exact

MARGIN = 0.1  # of everything: workspaces, fragmentation
CUDA_CONTEXT = 1e9  # bytes; with NCCL's
# DeepSpeed's defaults, in elements.
BUCKET = 5e8  # reduced at once
LIVE = 1e9  # gathered at stage 3, of each engine
PERSISTENT = 1e5  # of a parameter that stage 3 keeps gathered

ESTIMATES = ("buffers", "margin")


@dataclass(frozen=True)
class Sharding:
    """How a run's networks are stored and shared out.

    Networks that stay whole in float32 (`Role.exact`) are stored in another way than the others:
    they are `beside`, and numbers here are without them.
    """

    parameters: Mapping[str, int]  # numbers that are trained in each network, by role
    steps: Mapping[str, float]  # of each network's optimizer in an iteration, by role
    tensors: float  # that are stepped in an iteration
    frozen: Mapping[str, int]  # numbers that are not trained in each network that is, by role
    persistent: int  # of all these numbers, in tensors that stage 3 keeps gathered
    normalised: float  # numbers that are stepped, in tensors that the forward pass reads normalised
    normalised_tensors: float  # that those are
    fixed: int  # bytes of networks that are not trained
    settings: DeepSpeedSettings
    ranks: int
    averages: int = 1  # that the run keeps of the generator
    beside: "Sharding | None" = None

    @classmethod
    def of(
        cls, networks: RunNetworks, settings: DeepSpeedSettings, ranks: int, averages: int = 1
    ) -> "Sharding":
        """`networks` are those of `build_networks`."""
        whole = {n: network for n, network in networks.trained.items() if n in networks.exact}
        others = {n: network for n, network in networks.trained.items() if n not in whole}
        sharding = cls._of(networks._replace(trained=others), settings, ranks, averages)
        if not whole:
            return sharding
        whole_ones = networks._replace(trained=whole, fixed={})
        beside = cls._of(whole_ones, exact(settings), ranks, averages)
        return replace(sharding, beside=beside)

    @classmethod
    def _of(
        cls, networks: RunNetworks, settings: DeepSpeedSettings, ranks: int, averages: int
    ) -> "Sharding":
        roles = networks.trained
        sizes = {name: [p.numel() for p in n.parameters()] for name, n in roles.items()}
        trained = {
            name: {name_of: p.numel() for name_of, p in trained_parameters(network)}
            for name, network in roles.items()
        }
        numbers = {name: sum(of_network.values()) for name, of_network in trained.items()}
        steps = {name: networks.steps.get(name, 1.0) for name in roles}
        zero = settings.config.get("zero_optimization", {})
        threshold = zero.get("stage3_param_persistence_threshold", PERSISTENT)
        persistent = sum(n for of_network in sizes.values() for n in of_network if n <= threshold)
        normalised = [
            (steps[role], trained[role][name])
            for role, network in roles.items()
            if isinstance(network, Denoiser)
            for name in network.forward_scales()
            if name in trained[role]
        ]
        fixed = [t for n in networks.fixed.values() for t in (*n.parameters(), *n.buffers())]
        return cls(
            parameters=numbers,
            steps=steps,
            tensors=sum(steps[name] * len(of_network) for name, of_network in trained.items()),
            frozen={name: sum(sizes[name]) - n for name, n in numbers.items()},
            persistent=persistent,
            normalised=sum(times * n for times, n in normalised),
            normalised_tensors=sum(times for times, _ in normalised),
            fixed=sum(t.nbytes for t in fixed),
            settings=settings,
            ranks=ranks,
            averages=averages,
        )

    @property
    def parts(self) -> "tuple[Sharding, ...]":
        """All that is stored in one way, and all that is stored in another."""
        return (replace(self, beside=None), self.beside) if self.beside else (self,)

    @property
    def averaged(self) -> int:
        """Parameters of all averages that the run keeps."""
        return self.averages * self.parameters.get(GENERATOR, 0)

    @property
    def stage(self) -> int:
        return self.settings.stage

    @property
    def total(self) -> int:
        """Parameters that are trained, of all networks."""
        return sum(self.parameters.values())

    @property
    def stepped(self) -> float:
        """Parameters that optimizers step in an iteration, each as often as it is."""
        return sum(self.steps[name] * n for name, n in self.parameters.items())

    @property
    def stored(self) -> int:
        """Parameters of all networks that are trained, with those that are frozen in them."""
        return self.total + sum(self.frozen.values())

    @property
    def largest(self) -> int:
        """Parameters that are trained, of the network with most of them."""
        return max(self.parameters.values())

    @property
    def shards(self) -> int:
        """Parts that masters and optimizers are cut into."""
        return self.ranks if self.stage else 1

    @property
    def weight_bytes(self) -> int:
        """Of a parameter as the forward pass reads it."""
        return self.settings.weight_bytes

    @property
    def gradient_bytes(self) -> int:
        """Of a parameter's gradient while it is summed over micro-batches."""
        return self.settings.gradient_bytes

    @property
    def sent_bytes(self) -> int:
        """Of a parameter's gradient as ranks exchange it."""
        dtype: str = self.settings.config.get("communication_data_type", "")
        return ITEMSIZE.get(dtype, self.weight_bytes)

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
    parts = [_state_bytes(part) for part in sharding.parts]
    held = {kind: sum(part[kind] for part in parts) for kind in parts[0]}
    # Below stage 3 gradients are given back at each network's step: there are one network's.
    lasting = [p["gradients"] for s, p in zip(sharding.parts, parts, strict=True) if s.stage == 3]
    given_back = [p["gradients"] for s, p in zip(sharding.parts, parts, strict=True) if s.stage < 3]
    return {**held, "gradients": sum(lasting) + max(given_back, default=0.0)}


def _state_bytes(sharding: Sharding) -> dict[str, float]:
    s = sharding
    on_host = s.offloads("optimizer")
    return {
        "weights": _weights(s) * s.weight_bytes,
        "gradients": _gradients(s) if s.settings.sums_on_gpu else 0.0,
        "optimizer": 0.0 if on_host else s.total * (FLOAT32 + ADAM) / s.shards,
        "average": 0.0 if on_host else s.averaged * FLOAT32 / s.shards,
        "fixed": float(s.fixed),
    }


def _weights(sharding: Sharding) -> float:
    """Elements of forward weights."""
    s = sharding
    if s.stage < 3:
        return s.stored
    return s.persistent + (0.0 if s.offloads("param") else s.stored / s.ranks)


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
    parts = sharding.parts
    lasting = sum(_buffer_bytes(s) for s in parts if s.stage == 3)
    return lasting + max((_buffer_bytes(s) for s in parts if s.stage < 3), default=0.0)


def _buffer_bytes(sharding: Sharding) -> float:
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
    stored = (n + sharding.frozen[name] for name, n in sharding.parameters.items())
    elements = sum(min(live, n) for n in stored)
    return float(elements * sharding.weight_bytes) if sharding.stage == 3 else 0.0


def step_bytes(sharding: Sharding) -> float:
    """Bytes on one GPU that the optimizer's step of the largest network takes for a while.

    Gradients are flattened in float32, unless they are that already; forward weights are made of
    the masters in a copy.
    """
    return max(map(_step_bytes, sharding.parts))


def _step_bytes(sharding: Sharding) -> float:
    s = sharding
    shard = s.largest * FLOAT32 / s.shards
    if s.offloads("optimizer"):
        return 0.0
    flat_gradient = 0.0 if s.stage == 0 or s.gradient_bytes == FLOAT32 else shard
    return flat_gradient + shard
