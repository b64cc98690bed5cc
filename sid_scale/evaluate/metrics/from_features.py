"""From features on disk to figures: distances, Inception Score, precision and recall.

Features are summed in float64, in an order that does not depend on the number of ranks, so the
figures are the same to the last bit on any.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.evaluate.blocks import Block, BlockStore
from sid_scale.evaluate.features import FEATURES, FRECHET, NEIGHBOURS
from sid_scale.evaluate.metrics.distances import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
)
from sid_scale.evaluate.metrics.precision_recall import precision_and_recall
from sid_scale.evaluate.references.files import Reference
from sid_scale.ranks import Ranks, on_first_rank

STRETCHES = 16  # that all blocks are cut into; each is summed by one rank


def compute_metrics(
    metrics: Sequence[str],
    references: dict[str, Reference],
    store: BlockStore,
    blocks: Sequence[Block],
    ranks: Ranks,
) -> dict[str, float]:
    """The metrics of the samples in `blocks`, on every rank; NaN where features are not finite.
    Collective.

    Raises:
        BlockError: features are missing or damaged.
    """
    figures: dict[str, float] = {}
    for metric in metrics:
        reference = references.get(metric)
        if metric in FRECHET:
            assert reference is not None  # find_references has seen to it
            statistics = sum_statistics(store, blocks, FEATURES[metric], ranks)
            assert reference.statistics is not None
            finite = np.isfinite(statistics.outer).all()
            if ranks.is_first:
                figures[metric] = (
                    frechet_distance(statistics, reference.statistics) if finite else float("nan")
                )
        elif metric == "is" and ranks.is_first:
            num = sum(block.num for block in blocks)
            figures[metric] = inception_score(store.read_all(blocks, FEATURES[metric]), num)
    neighbours = [metric for metric in metrics if metric in NEIGHBOURS]
    if neighbours:
        real = references[neighbours[0]].features
        assert real is not None
        joined = store.folder / "joined.npy"
        on_first_rank(lambda: store.join(blocks, FEATURES[neighbours[0]], joined))
        both = precision_and_recall(real, np.load(joined, mmap_mode="r"), ranks)
        figures |= {metric: both[metric] for metric in neighbours}
    everywhere = [figures]
    dist.broadcast_object_list(everywhere)  # the first rank has them all
    return {metric: everywhere[0][metric] for metric in metrics}


def sum_statistics(
    store: BlockStore, blocks: Sequence[Block], kind: str, ranks: Ranks
) -> FeatureStatistics:
    """Sums over all features of a kind, on every rank. Collective.

    The blocks are cut into a fixed number of slices. Each is summed by one rank, which sends
    its sums to all; they are added in the order of the slices.
    """
    size = store.read(blocks[0], kind).shape[1]
    cut = [s for s in np.array_split(np.arange(len(blocks)), STRETCHES) if len(s)]
    total = FeatureStatistics.empty(size)
    for begin in range(0, len(cut), ranks.world_size):
        row = cut[begin : begin + ranks.world_size]
        mine: Iterable[int] = row[ranks.rank] if ranks.rank < len(row) else ()
        sums = FeatureStatistics.empty(size)
        for number in mine:
            sums = sums + FeatureStatistics.of(store.read(blocks[number], kind))
        for owner in range(len(row)):
            total = total + _from_rank(owner, sums, ranks.device)
    return total


def _from_rank(owner: int, sums: FeatureStatistics, device: torch.device) -> FeatureStatistics:
    """What rank `owner` holds, on every rank. Collective."""
    parts: list[Tensor] = [
        torch.tensor([float(sums.count)], dtype=torch.float64),
        torch.from_numpy(sums.total),
        torch.from_numpy(sums.outer),
    ]
    sent = [part.to(device, copy=True) for part in parts]
    for part in sent:
        dist.broadcast(part, src=owner)
    count, total, outer = (part.cpu().numpy() for part in sent)
    return FeatureStatistics(int(count[0]), total, outer)
