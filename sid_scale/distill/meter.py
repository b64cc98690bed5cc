"""Averages over many micro-batches and all ranks, without waiting for the device.

Values stay on the device until they are reported; then one all-reduce and one copy fetch all.
"""

from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

# Edges of the bins of noise levels.
SIGMA_EDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


MeterSums = dict[str, tuple[float, float]]  # name -> sum, count


class Meter:
    """Running means by name. All ranks must add the same names (the values differ).

    Only bins of sigma may stay empty; they are then left out.
    """

    def __init__(self, device: torch.device, begun: MeterSums | None = None):
        """`begun` is what this rank had before an interruption (`gather`)."""
        self._device = device
        self._sums = {  # name -> (sum, count)
            name: torch.tensor(pair, dtype=torch.float64, device=device)
            for name, pair in (begun or {}).items()
        }
        self._edges = torch.tensor(SIGMA_EDGES, device=device)
        self._bins = torch.arange(len(SIGMA_EDGES) + 1, device=device)

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds one value.

        A value that is not finite counts for nothing, unless there are no others.
        """
        if not isinstance(value, Tensor):
            # A tensor made on the host would have to be waited for.
            value = torch.full((), value, dtype=torch.float64, device=self._device)
        total = value.detach().to(self._device, torch.float64).reshape(1)
        self._add([name], total, torch.ones_like(total))

    def add_by_sigma(self, name: str, sigma: Tensor, values: Tensor) -> None:
        """Adds per-sample values (N,) to the bin of their sigma (N elements)."""
        inside = torch.bucketize(sigma.flatten(), self._edges) == self._bins[:, None]
        totals = torch.where(inside, values.double(), 0.0).sum(dim=1)
        names = [f"{name}_by_sigma/{label}" for label in sigma_bins()]
        self._add(names, totals, inside.sum(dim=1).double())

    def _add(self, names: list[str], totals: Tensor, counts: Tensor) -> None:
        """Adds sums of `counts` observations each, (n,)."""
        pairs = torch.stack([totals, counts], dim=1)
        pairs = torch.where(totals.isfinite()[:, None], pairs, 0.0)
        for name, pair in zip(names, pairs.unbind(), strict=True):
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def report(self) -> dict[str, float]:
        """Means over all ranks since the last report. Collective."""
        names = list(self._sums)
        if not names:
            return {}
        totals = torch.stack([self._sums[name] for name in names])
        dist.all_reduce(totals)
        self._sums.clear()
        return {
            name: total / count if count > 0 else float("nan")
            for name, (total, count) in zip(names, totals.tolist(), strict=True)
            if count > 0 or "_by_sigma/" not in name
        }

    def gather(self) -> list[MeterSums]:
        """What every rank has since the last report. Collective."""
        mine = {name: tuple(pair.tolist()) for name, pair in self._sums.items()}
        gathered: list[MeterSums] = [{}] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        return gathered


def sigma_bins() -> list[str]:
    """Names of the bins that SIGMA_EDGES makes."""
    edges = ["0", *(f"{edge:g}" for edge in SIGMA_EDGES), "inf"]
    return [f"{low}-{high}" for low, high in pairwise(edges)]
