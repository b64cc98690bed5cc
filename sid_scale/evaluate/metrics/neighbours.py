"""Precision and recall (Kynkaanniemi et al., arXiv 1904.06991), density and coverage (Naeem et al.,
arXiv 2002.09797).

The ball of a feature reaches as far as its k-th nearest neighbour in its own set, with its edge.
k is 3 for precision and recall, 5 for density and coverage, as published.

    precision   share of generated images in the ball of some real one
    recall      share of real images in the ball of some generated one
    density     number of real balls that a generated image is in, on average, divided by k: 1 if
                both sets are of one distribution, and it may be more
    coverage    share of real images in whose ball some generated one is
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.evaluate.features import NEIGHBOURS
from sid_scale.evaluate.metrics.pairs import columns_of, dealt, on_device
from sid_scale.ranks import Ranks

K_PRECISION, K_DENSITY = 3, 5


class _Radii(NamedTuple):
    """Squared distances of each member of a set to two of its neighbours, (N,) each."""

    precision: Tensor
    density: Tensor


def neighbour_metrics(real: np.ndarray, made: np.ndarray, ranks: Ranks) -> dict[str, float]:
    """The four metrics by name, of features (N, D) and (M, D), the same on every rank; NaN where
    features are not finite. Collective."""
    of_real, of_made = _radii(real, ranks), _radii(made, ranks)
    if not (of_real.density.isfinite().all() and of_made.density.isfinite().all()):
        return dict.fromkeys(NEIGHBOURS, math.nan)
    counts = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    for rows in dealt(len(made), ranks):
        in_some = torch.zeros(rows.stop - rows.start, dtype=torch.bool, device=ranks.device)
        for columns, distances in _distances(made[rows], real, ranks.device):
            in_some |= (distances <= of_real.precision[columns]).any(dim=1)
            counts[2] += (distances <= of_real.density[columns]).sum()
        counts[0] += in_some.sum()
    for rows in dealt(len(real), ranks):
        in_some = torch.zeros(rows.stop - rows.start, dtype=torch.bool, device=ranks.device)
        is_covered = torch.zeros_like(in_some)
        reach = of_real.density[rows, None]
        for columns, distances in _distances(real[rows], made, ranks.device):
            in_some |= (distances <= of_made.precision[columns]).any(dim=1)
            is_covered |= (distances <= reach).any(dim=1)
        counts[1] += in_some.sum()
        counts[3] += is_covered.sum()
    dist.all_reduce(counts)
    shares = counts.cpu() / torch.tensor(
        [len(made), len(real), K_DENSITY * len(made), len(real)], dtype=torch.float64
    )
    return dict(zip(NEIGHBOURS, shares.tolist(), strict=True))


def _radii(members: np.ndarray, ranks: Ranks) -> _Radii:
    """Of each member among the others; a member is its own nearest."""
    last = len(members) - 1
    ks = [min(k, last) for k in (K_PRECISION, K_DENSITY)]
    radii = torch.zeros(2, len(members), dtype=torch.float64, device=ranks.device)
    for rows in dealt(len(members), ranks):
        smallest = radii.new_full((rows.stop - rows.start, max(ks) + 1), torch.inf)
        for _, distances in _distances(members[rows], members, ranks.device):
            candidates = torch.cat([smallest, distances], dim=1)
            smallest = candidates.topk(max(ks) + 1, largest=False).values
        radii[:, rows] = smallest.sort(dim=1).values[:, ks].T
    dist.all_reduce(radii)  # every one was computed by one rank, and is 0 elsewhere
    return _Radii(*radii)


def _distances(
    rows: np.ndarray, columns: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances (n, m) in float64, some columns after the other."""
    a = on_device(rows, device)
    squares = a.square().sum(dim=1, keepdim=True)
    for part, b in columns_of(columns, device):
        yield part, (squares + b.square().sum(dim=1) - 2 * a @ b.T).clip(min=0)
