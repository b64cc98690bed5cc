"""What a run keeps on nodes and disks, and what its GPUs send: counted bytes."""

import math
from dataclasses import astuple, dataclass

from sid_scale.estimate.state import ADAM, FLOAT32, Sharding
from sid_scale.estimate.step import StepCount
from sid_scale.methods import GENERATOR


def checkpoint_bytes(sharding: Sharding) -> float:
    """Size of a checkpoint: masters and Adam of every network, the generator's averages."""
    return sum(_trained_state(s) for s in sharding.parts)


def snapshot_bytes(sharding: Sharding) -> float:
    """Size of a snapshot of the averages that are kept beside the published one."""
    others = ((s.averages - 1) * s.parameters.get(GENERATOR, 0) for s in sharding.parts)
    return float(sum(others) * FLOAT32)


def _trained_state(s: Sharding) -> float:
    return float(s.total * (FLOAT32 + ADAM) + s.averaged * FLOAT32)


def host_bytes(sharding: Sharding, gpus_per_node: int, *, async_save: bool) -> dict[str, float]:
    """Bytes of a node's memory that the state takes while the run goes on."""
    nodes = math.ceil(sharding.ranks / gpus_per_node)
    host = {"checkpoint copy": checkpoint_bytes(sharding) / nodes if async_save else 0.0}
    for s in sharding.parts:
        for what, nbytes in _offloaded_bytes(s, gpus_per_node).items():
            host[what] = host.get(what, 0.0) + nbytes
    return host


def _offloaded_bytes(sharding: Sharding, gpus_per_node: int) -> dict[str, float]:
    s, host = sharding, {}
    share = min(gpus_per_node, s.ranks) / s.shards  # of the masters, on one node
    gradients = s.total * (FLOAT32 if s.stage < 3 else s.gradient_bytes)
    if s.offloads("optimizer"):
        host["optimizer, average"] = _trained_state(s) * share
        host["gradients"] = gradients * share
        if s.stage < 3:
            host["weights to send"] = s.total * s.weight_bytes * share
    if s.offloads("param"):
        host["weights"] = s.stored * s.weight_bytes * share
    return host


@dataclass(frozen=True)
class Communication:
    """Bytes that one GPU sends in an iteration."""

    per_micro_batch: float
    per_update: float
    host: float  # between a GPU and its node's memory, per iteration

    def per_iteration(self, accumulation: int) -> float:
        return accumulation * self.per_micro_batch + self.per_update


def communication(sharding: Sharding, count: StepCount, accumulation: int) -> Communication:
    """What ranks exchange, with ring algorithms: an all-reduce sends everything twice.

    Stage 3's gathers are counted module by module: at most so many, since DeepSpeed leaves out what
    it has kept from a moment before.
    """
    parts = [_communication(s, count, accumulation) for s in sharding.parts]
    return Communication(*map(sum, zip(*map(astuple, parts), strict=True)))


def _communication(sharding: Sharding, count: StepCount, accumulation: int) -> Communication:
    s = sharding
    others = (s.ranks - 1) / s.ranks
    gradients, weights = s.stepped * s.sent_bytes, s.stepped * s.weight_bytes
    per_micro_batch = {
        0: 0.0,
        1: 0.0,
        2: 2.0 * gradients,
        3: gradients + count.gathered,
    }[s.stage]
    per_update = {0: 2.0 * gradients, 1: 2.0 * gradients + weights, 2: 1.0 * weights, 3: 0.0}
    host = 0.0
    if s.offloads("optimizer"):
        # Where the sum is on the host every micro-batch brings it to the GPU and back.
        crossings = 1 if s.settings.sums_on_gpu else 2 * accumulation
        host = s.stepped / s.ranks * (crossings * s.gradient_bytes + s.weight_bytes)
    if s.offloads("param"):
        host += accumulation * count.gathered / s.ranks
    return Communication(others * per_micro_batch, others * per_update[s.stage], host)
