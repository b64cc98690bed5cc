"""Monge distance between two sets of features (MIND, Berthet et al., arXiv 2605.06797, when they
are Inception's): the sliced 2-Wasserstein distance, squared, times 3 D.

The features of both sets are projected onto 1000 random directions of length 1 and sorted; the
squared differences are averaged. The factor makes a shift of all features by c cost 3 |c|^2. The
distance of finite samples of one distribution is above 0 and falls with their number: figures
compare at equal numbers only (the paper proposes 5,000).
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.evaluate.metrics.pairs import ROWS, dealt, on_device
from sid_scale.ranks import Ranks

DIRECTIONS, SEED = 1000, 2020  # torch-fidelity's, which draws them in the same way
AT_ONCE = 128  # directions whose projections are in memory, in float64: 50 MB for 50,000 features


def monge_distance(real: np.ndarray, made: np.ndarray, ranks: Ranks) -> float:
    """Of features (N, D) and (M, D); of the larger set as many as the other has are taken, evenly
    spread. The same on every rank, on any number of them; NaN where features are not finite.
    Collective."""
    num, size = min(len(real), len(made)), real.shape[1]
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(DIRECTIONS, size, generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(ranks.device, torch.float64)
    squares = torch.zeros(DIRECTIONS, dtype=torch.float64, device=ranks.device)
    for some in dealt(DIRECTIONS, ranks, AT_ONCE):
        ours, theirs = (_sorted(x, num, directions[some]) for x in (made, real))
        squares[some] = (ours - theirs).square().mean(dim=1)
    dist.all_reduce(squares)  # every one was computed by one rank, and is 0 elsewhere
    return 3 * size * float(squares.mean())


def _sorted(features: np.ndarray, num: int, directions: Tensor) -> Tensor:
    """`num` of the features on some directions (m, D), sorted: (m, num)."""
    taken = np.arange(num) * len(features) // num
    parts = [taken[start : start + ROWS] for start in range(0, num, ROWS)]
    projected = [directions @ on_device(features[part], directions.device).T for part in parts]
    return torch.cat(projected, dim=1).sort(dim=1).values
