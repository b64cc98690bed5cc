"""Exponential moving average of the masters, kept as shards of float32.

Each rank averages the fragments that it owns, so at stage 1 and above no rank ever holds a
full copy. To look at the average through the network it changes places with the masters for
a while (`applied`): no second network, no copy beyond one fragment.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sid_scale.zero.engines import ShardedNetwork
from sid_scale.zero.fragments import gather_parameters, local_fragments


def ema_decay(images_seen: int, batch_size: int, half_life: float, ramp_up: float) -> float:
    """Share of the old average that one update keeps.

    `half_life` is in images; until `images_seen * ramp_up` exceeds it that takes its place, so
    that early averages forget the start (arXiv 2206.00364's training loop). 0 ramp-up: none.
    """
    if ramp_up > 0:
        half_life = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


class ShardedEMA:
    """The average of one network's masters; starts as a copy of them."""

    def __init__(self, network: ShardedNetwork):
        self._network = network
        self.fragments = local_fragments(network.engine)
        self.values: list[Tensor] = [f.master.clone() for f in self.fragments]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Moves the average towards the masters; no communication."""
        masters = [f.master for f in self.fragments]
        torch._foreach_lerp_(self.values, masters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the engine's network computes with the average. Collective on both ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def gather(self) -> dict[str, Tensor] | None:
        """Full averaged parameters on rank 0 (CPU), None elsewhere. Collective."""
        return gather_parameters(self._network.engine, self.fragments, self.values)

    @torch.no_grad()
    def _swap(self) -> None:
        for fragment, value in zip(self.fragments, self.values, strict=True):
            kept = fragment.master.clone()
            fragment.master.copy_(value)
            value.copy_(kept)
        self._network.forward_weights.publish()
