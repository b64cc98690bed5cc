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

    def add(self, name: str, value: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds a value that stands for `count` observations whose sum it is.

        A value that is not finite counts for nothing, unless there are no others.
        """
        pair = torch.stack([self._number(value), self._number(count)])
        pair = torch.where(pair[0].isfinite(), pair, 0.0)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_by_sigma(self, name: str, sigma: Tensor, values: Tensor) -> None:
        """Adds per-sample values (N,) to the bin of their sigma (N elements)."""
        bins = torch.bucketize(sigma.flatten(), self._edges)
        for i, label in enumerate(sigma_bins()):
            inside = (bins == i).double()
            self.add(f"{name}_by_sigma/{label}", (values.double() * inside).sum(), inside.sum())

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

    def _number(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64).detach().to(self._device).reshape(())


def sigma_bins() -> list[str]:
    """Names of the bins that SIGMA_EDGES makes."""
    edges = ["0", *(f"{edge:g}" for edge in SIGMA_EDGES), "inf"]
    return [f"{low}-{high}" for low, high in pairwise(edges)]
