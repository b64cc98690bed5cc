"""How long an iteration takes by a roofline: every kernel runs at the rate of what limits it.

    compute    convolutions, matrix products and attention whose FLOP take longer than their bytes
    memory     all other kernels, and the update's passes over the masters
    launches   kernels, launched one after another by the host while the GPU works
    network    what ranks exchange, and what crosses between a GPU and its node's memory

A micro-batch takes compute + memory, or its launches if they take longer; the network's time comes
on top, or hides behind that if the DeepSpeed JSON says `overlap_comm`. Rates are assumptions.
"""

from dataclasses import dataclass

import torch

from sid_scale.config.run import RunConfig
from sid_scale.estimate.count import ATTENTION, CONVOLUTION, MATMUL
from sid_scale.estimate.state import FLOAT32, Communication, Sharding, communication
from sid_scale.estimate.step import StepCount
from sid_scale.methods import GENERATOR

PRODUCTS = (CONVOLUTION, MATMUL, ATTENTION)
# Numbers of float32 that an update reads and writes for a master: the chain rule through the rows'
# magnitudes (9), the gradient's norm (3), Adam (7), the rows' magnitudes (4), forced normalisation
# (2), the forward weights made (4) and read (1).
UPDATE = FLOAT32 * (9 + 3 + 7 + 4 + 2 + 4 + 1)
AVERAGE = 3 * FLOAT32  # the average is read and written, the master read


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
    compute, memory = _on_gpu(sharding, count, rates)
    exchanged = communication(sharding, count, accumulation)
    return IterationTime(
        compute=accumulation * compute,
        memory=accumulation * memory + update_bytes(sharding) / (rates.memory_tb_s * 1e12),
        launches=accumulation * count.total.kernels * rates.launch_us * 1e-6,
        network=_on_network(exchanged, accumulation, nodes, rates),
        overlaps=sharding.overlaps_communication,
        images=config.batch_size,
        gpus=sharding.ranks,
        model_flop=count.model_flop / count.samples,
        rates=rates,
    )


def update_bytes(sharding: Sharding) -> float:
    """Bytes that one GPU reads and writes for the steps of all optimizers and the average."""
    if sharding.offloads("optimizer"):
        return 0.0  # the host does it
    per_step = UPDATE + sharding.weight_bytes
    masters = sharding.total * per_step + sharding.parameters[GENERATOR] * AVERAGE
    return masters / sharding.shards


def _on_gpu(sharding: Sharding, count: StepCount, rates: Rates) -> tuple[float, float]:
    """Seconds of a micro-batch that compute and memory limit."""
    half = sharding.settings.compute_dtype != torch.float32
    flop_rate = (rates.tflops if half else rates.float32_tflops) * 1e12
    byte_rate = rates.memory_tb_s * 1e12
    compute = memory = 0.0
    for (_, kind), work in count.work.items():
        computing, moving = work.flop / flop_rate, work.nbytes / byte_rate
        if kind in PRODUCTS and computing > moving:
            compute += computing
        else:
            memory += moving
    return compute, memory


def _on_network(exchanged: Communication, accumulation: int, nodes: int, rates: Rates) -> float:
    rate = rates.node_gb_s if nodes == 1 else rates.network_gb_s
    sent = exchanged.per_iteration(accumulation) / (rate * 1e9)
    return sent + exchanged.host / (rates.host_gb_s * 1e9)
