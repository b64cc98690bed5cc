"""Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

A set of features stands for all places that are no farther from one of its members than that
member's k-th nearest neighbour in the set, k = 3. Precision is the share of generated images within
the real ones' places, recall the share of real images within the generated ones'.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.ranks import Ranks

NEIGHBOUR = 3
ROWS, COLUMNS = 2048, 4096  # whose distances are in memory at once, in float64: 64 MB


def precision_and_recall(real: np.ndarray, made: np.ndarray, ranks: Ranks) -> dict[str, float]:
    """Shares in [0, 1] for features (N, D) and (M, D), the same on every rank; NaN where features
    are not finite. Collective."""
    of_real, of_made = _radii(real, ranks), _radii(made, ranks)
    if not (of_real.isfinite().all() and of_made.isfinite().all()):
        return dict.fromkeys(("precision", "recall"), math.nan)
    return {
        "precision": _share_within(made, real, of_real, ranks),
        "recall": _share_within(real, made, of_made, ranks),
    }


def _share_within(looked_at: np.ndarray, members: np.ndarray, radii: Tensor, ranks: Ranks) -> float:
    """Share of features within `radii` (M,) of `members` (M, D)."""
    within = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    for rows in _dealt(len(looked_at), ranks):
        inside = torch.zeros(rows.stop - rows.start, dtype=torch.bool, device=ranks.device)
        for columns, distances in _distances(looked_at[rows], members, ranks.device):
            inside |= (distances <= radii[columns]).any(dim=1)
        within += inside.sum()
    dist.all_reduce(within)
    return float(within) / len(looked_at)


def _radii(members: np.ndarray, ranks: Ranks) -> Tensor:
    """Squared distance of each member to its k-th nearest neighbour among the others: (N,)."""
    radii = torch.zeros(len(members), dtype=torch.float64, device=ranks.device)
    nearest = min(NEIGHBOUR + 1, len(members))  # a member is its own nearest
    for rows in _dealt(len(members), ranks):
        smallest = radii.new_full((rows.stop - rows.start, nearest), torch.inf)
        for _, distances in _distances(members[rows], members, ranks.device):
            candidates = torch.cat([smallest, distances], dim=1)
            smallest = candidates.topk(nearest, largest=False).values
        radii[rows] = smallest.amax(dim=1)
    dist.all_reduce(radii)  # every one was computed by one rank, and is 0 elsewhere
    return radii


def _dealt(count: int, ranks: Ranks) -> list[slice]:
    """This rank's rows."""
    starts = range(0, count, ROWS)[ranks.rank :: ranks.world_size]
    return [slice(start, min(start + ROWS, count)) for start in starts]


def _distances(
    rows: np.ndarray, columns: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances (n, m) in float64, some columns after the other."""
    a = torch.tensor(rows).to(device, torch.float64)
    squares = a.square().sum(dim=1, keepdim=True)
    for start in range(0, len(columns), COLUMNS):
        part = slice(start, min(start + COLUMNS, len(columns)))
        b = torch.tensor(columns[part]).to(device, torch.float64)
        distances = (squares + b.square().sum(dim=1) - 2 * a @ b.T).clip(min=0)
        yield part, distances
