"""From features on disk to metrics: each family of metrics has its module.

Features are summed in float64, in an order that does not depend on the number of ranks, so the
metrics are the same to the last bit on any.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.evaluate.blocks import Block, BlockStore
from sid_scale.evaluate.features import (
    FDR,
    KERNEL,
    MONGE,
    NEIGHBOURS,
    family_of,
    fdr_members,
    kind_of,
    needs_real_features,
    needs_statistics,
)
from sid_scale.evaluate.metrics.distances import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
)
from sid_scale.evaluate.metrics.kernel import kernel_distance
from sid_scale.evaluate.metrics.monge import monge_distance
from sid_scale.evaluate.metrics.neighbours import neighbour_metrics
from sid_scale.evaluate.references.find import Reference
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
        if needs_statistics(metric):
            statistics = sum_statistics(store, blocks, kind_of(metric), ranks)
            if ranks.is_first:
                figures[metric] = _frechet(statistics, references[metric])
        elif metric == "is" and ranks.is_first:
            num = sum(block.num for block in blocks)
            figures[metric] = inception_score(store.read_all(blocks, kind_of(metric)), num)
    compared = [metric for metric in metrics if needs_real_features(metric)]
    for kind in dict.fromkeys(map(kind_of, compared)):
        joined = store.folder / f"joined.{kind}.npy"
        on_first_rank(partial(store.join, blocks, kind, joined))
        made = np.load(joined, mmap_mode="r")
        same_kind = [metric for metric in compared if kind_of(metric) == kind]
        figures |= compare_features(same_kind, references, made, ranks)
    if FDR in metrics and ranks.is_first:
        figures[FDR] = float(np.mean(list(fdr_ratios(figures, references).values())))
    everywhere = [figures]
    dist.broadcast_object_list(everywhere)  # the first rank has them all
    return {metric: everywhere[0][metric] for metric in metrics}


def compare_features(
    metrics: Sequence[str], references: Mapping[str, Reference], made: np.ndarray, ranks: Ranks
) -> dict[str, float]:
    """Metrics of one kind of features, of generated ones (M, D) against real ones. Collective."""
    found: dict[str, float] = {}
    for metric in metrics:
        real = references[metric].features
        assert real is not None  # find_references has seen to it
        if metric in NEIGHBOURS and metric not in found:
            found |= neighbour_metrics(real, made, ranks)
        elif family_of(metric) == KERNEL:
            found[metric] = kernel_distance(real, made, ranks)
        elif family_of(metric) == MONGE:
            found[metric] = monge_distance(real, made, ranks)
    return {metric: found[metric] for metric in metrics}


def fdr_ratios(
    figures: Mapping[str, float], references: Mapping[str, Reference]
) -> dict[str, float]:
    """Fréchet distance -> its ratio to that of real images which the reference does not hold
    (arXiv 2604.28190, eq. 7); FDr is their mean (eq. 8)."""
    ratios = {}
    for metric in fdr_members(figures):
        held_out = references[metric].held_out
        assert held_out is not None  # find_references has seen to it
        ratios[metric] = figures[metric] / held_out
    return ratios


def _frechet(statistics: FeatureStatistics, reference: Reference) -> float:
    assert reference.statistics is not None  # find_references has seen to it
    if not np.isfinite(statistics.outer).all():
        return float("nan")
    return frechet_distance(statistics, reference.statistics)


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
