"""Kernel distance between two sets of features (KID, Binkowski et al., arXiv 1801.01401, when they
are Inception's): the unbiased estimate of the squared maximum mean discrepancy of the kernel
(x y / D + 1)^3, over all pairs.

Its expectation does not depend on how many images there are; it is 0 for two sets of one
distribution, so an estimate may lie below 0.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.evaluate.metrics.pairs import columns_of, dealt, on_device
from sid_scale.ranks import Ranks


def kernel_distance(real: np.ndarray, made: np.ndarray, ranks: Ranks) -> float:
    """Of features (N, D) and (M, D), two or more each; the same on every rank, on any number of
    them; NaN where features are not finite. Collective."""
    n, m = len(real), len(made)
    of_real, of_made = _between(real, real, ranks), _between(made, made, ranks)
    within_real = (of_real - _with_themselves(real, ranks)) / (n * (n - 1))
    within_made = (of_made - _with_themselves(made, ranks)) / (m * (m - 1))
    return within_real + within_made - 2 * _between(real, made, ranks) / (n * m)


def _between(a: np.ndarray, b: np.ndarray, ranks: Ranks) -> float:
    """Sum of the kernel over all pairs of one of `a` and one of `b`."""
    sums = torch.zeros(len(a), dtype=torch.float64, device=ranks.device)
    for rows in dealt(len(a), ranks):
        x = on_device(a[rows], ranks.device)
        for _, y in columns_of(b, ranks.device):
            sums[rows] += _kernel(x @ y.T / x.shape[1]).sum(dim=1)
    return _total(sums)


def _with_themselves(features: np.ndarray, ranks: Ranks) -> float:
    """Sum of the kernel over the pairs of each feature and itself."""
    sums = torch.zeros(len(features), dtype=torch.float64, device=ranks.device)
    for rows in dealt(len(features), ranks):
        x = on_device(features[rows], ranks.device)
        sums[rows] = _kernel(x.square().mean(dim=1))
    return _total(sums)


def _total(sums: Tensor) -> float:
    """Every one was computed by one rank and is 0 elsewhere: they are added in one order."""
    dist.all_reduce(sums)
    return float(sums.sum())


def _kernel(products: Tensor) -> Tensor:
    return (products + 1) ** 3
