"""How long an iteration takes by a roofline: every kernel runs at the rate of what limits it.

    compute    convolutions, matrix products and attention whose FLOP take longer than their bytes
    memory     all other kernels, what DeepSpeed does to gradients, the update of the masters
    launches   kernels, launched one after another by the host while the GPU works
    network    what ranks exchange, and what crosses between a GPU and its node's memory

A micro-batch takes compute + memory, or its launches if they take longer; the network's time comes
on top, or hides behind that if the DeepSpeed JSON says `overlap_comm`. Rates are assumptions.
"""

from dataclasses import dataclass

from sid_scale.config.run import RunConfig
from sid_scale.estimate.count import ATTENTION, CONVOLUTION, MATMUL
from sid_scale.estimate.state import FLOAT32, Sharding
from sid_scale.estimate.step import StepCount
from sid_scale.estimate.traffic import Communication, communication

PRODUCTS = (CONVOLUTION, MATMUL, ATTENTION)
# Numbers of float32 that an update reads and writes for a master: norms and checks of the gradient
# (6), Adam (7), a copy for the forward weights made (2) and read (1).
UPDATE = 16 * FLOAT32
# More for one that the forward pass reads normalised: the chain rule through the rows' magnitudes
# (9), these magnitudes (4), forced normalisation (2), the forward weights scaled (2).
UPDATE_NORMALISED = 17 * FLOAT32
AVERAGE = 3 * FLOAT32  # the average is read and written, the master read
# Kernels for each tensor: to sum its gradient in a micro-batch, in an update, and in an update for
# one that is read normalised beside these.
SUM_KERNELS, UPDATE_KERNELS, NORMALISED_KERNELS = 3, 7, 11


@dataclass(frozen=True)
class Rates:
    """What a GPU is assumed to reach; defaults are an H100's."""

    tflops: float = 400.0  # of matrix products in half precision
    float32_tflops: float = 50.0
    peak_tflops: float = 989.0  # the vendor's figure, for the utilisation alone
    memory_tb_s: float = 2.8
    launch_us: float = 5.0  # of a kernel
    node_gb_s: float = 200.0  # sent by a GPU to others of its node
    network_gb_s: float = 40.0  # sent by a GPU when there are several nodes
    host_gb_s: float = 25.0  # between a GPU and its node's memory


@dataclass(frozen=True)
class IterationTime:
    """Seconds of one iteration, by what limits them."""

    compute: float
    memory: float
    launches: float
    network: float
    overlaps: bool  # whether the network's time hides behind the rest
    images: int
    gpus: int
    model_flop: float  # per image
    rates: Rates

    @property
    def seconds(self) -> float:
        on_gpu = max(self.compute + self.memory, self.launches)
        return max(on_gpu, self.network) if self.overlaps else on_gpu + self.network

    @property
    def terms(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("compute", "memory", "launches", "network")}

    @property
    def dominant(self) -> str:
        """The largest of the terms."""
        return max(self.terms, key=lambda name: self.terms[name])

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        return self.images / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the GPUs' peak that the model's FLOP make up."""
        flop = self.model_flop * self.images_per_second
        return flop / (self.gpus * self.rates.peak_tflops * 1e12)

    def gpu_hours(self, images: int) -> float:
        """Of so many images."""
        return images / self.images_per_second * self.gpus / 3600


def iteration_time(
    config: RunConfig, sharding: Sharding, count: StepCount, nodes: int, rates: Rates
) -> IterationTime:
    """Of one iteration of all updates."""
    accumulation = config.accumulation(sharding.ranks)
    compute, memory = _on_gpu(count, rates)
    exchanged = communication(sharding, count, accumulation)
    moved = sum_bytes(sharding, accumulation) + update_bytes(sharding)
    return IterationTime(
        compute=accumulation * compute,
        memory=accumulation * memory + moved / (rates.memory_tb_s * 1e12),
        launches=kernels(sharding, count, accumulation) * rates.launch_us * 1e-6,
        network=_on_network(exchanged, accumulation, nodes, rates),
        overlaps=sharding.overlaps_communication,
        images=config.batch_size,
        gpus=sharding.ranks,
        model_flop=count.model_flop / count.samples,
        rates=rates,
    )


def kernels(sharding: Sharding, count: StepCount, accumulation: int) -> float:
    """That one GPU launches in an iteration."""
    parts = sharding.parts
    sums = sum((SUM_KERNELS if s.stage >= 2 else 1) * s.tensors for s in parts)
    update = sum(
        UPDATE_KERNELS * s.tensors + NORMALISED_KERNELS * s.normalised_tensors for s in parts
    )
    return accumulation * (count.total.kernels + sums) + update


def sum_bytes(sharding: Sharding, accumulation: int) -> float:
    """Bytes that one GPU reads and writes in an iteration to sum gradients, of samples and ranks.

    Stages 2 and 3 sum over ranks in every micro-batch: gradients are copied to a bucket, made one
    flat tensor in the dtype that is sent, divided, and a rank's share is added to its sum. Below,
    that comes once an update.
    """
    return sum(_sum_bytes(s, accumulation) for s in sharding.parts)


def _sum_bytes(sharding: Sharding, accumulation: int) -> float:
    s = sharding
    flat = 2 * s.weight_bytes if s.stage < 3 else 2 * s.sent_bytes
    converted = s.sent_bytes + s.weight_bytes if s.sent_bytes != s.weight_bytes else 0
    back = converted if s.stage < 3 else 0  # stage 2 copies the sum to the gradients, too
    each = 2 * s.weight_bytes + flat + converted + 2 * s.sent_bytes + back
    if s.stage < 2:
        return s.stepped * (accumulation * 3 * s.weight_bytes + each)
    return s.stepped * accumulation * (each + 3 * s.gradient_bytes / s.ranks)


def update_bytes(sharding: Sharding) -> float:
    """Bytes that one GPU reads and writes for the steps of all optimizers and the average."""
    return sum(map(_update_bytes, sharding.parts))


def _update_bytes(sharding: Sharding) -> float:
    if sharding.offloads("optimizer"):
        return 0.0  # the host does it
    steps = sharding.stepped * (UPDATE + sharding.weight_bytes)
    steps += sharding.normalised * UPDATE_NORMALISED
    return (steps + sharding.averaged * AVERAGE) / sharding.shards


def _on_gpu(count: StepCount, rates: Rates) -> tuple[float, float]:
    """Seconds of a micro-batch that compute and memory limit."""
    byte_rate = rates.memory_tb_s * 1e12
    compute = memory = 0.0
    for (_, kind), work in count.work.items():
        halves = work.flop - work.float32_flop
        computing = (halves / rates.tflops + work.float32_flop / rates.float32_tflops) * 1e-12
        moving = work.nbytes / byte_rate
        if kind in PRODUCTS and computing > moving:
            compute += computing
        else:
            memory += moving
    return compute, memory


def _on_network(exchanged: Communication, accumulation: int, nodes: int, rates: Rates) -> float:
    rate = rates.node_gb_s if nodes == 1 else rates.network_gb_s
    sent = exchanged.per_iteration(accumulation) / (rate * 1e9)
    return sent + exchanged.host / (rates.host_gb_s * 1e9)
