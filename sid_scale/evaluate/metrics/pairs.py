"""All pairs of two sets of features, some rows and columns at a time: no N x N matrix is held."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sid_scale.ranks import Ranks

ROWS, COLUMNS = 2048, 4096  # whose pairs are in memory at once, in float64: 64 MB


def dealt(count: int, ranks: Ranks, size: int = ROWS) -> list[slice]:
    """This rank's share of `count` rows, in slices of `size`."""
    starts = range(0, count, size)[ranks.rank :: ranks.world_size]
    return [slice(start, min(start + size, count)) for start in starts]


def on_device(features: np.ndarray, device: torch.device) -> Tensor:
    """Features (n, D) in float64: differences of large sums still have digits left."""
    return torch.tensor(features).to(device).to(torch.float64)


def columns_of(features: np.ndarray, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Some features (m, D) after the other, and which they are."""
    for start in range(0, len(features), COLUMNS):
        part = slice(start, min(start + COLUMNS, len(features)))
        yield part, on_device(features[part], device)
