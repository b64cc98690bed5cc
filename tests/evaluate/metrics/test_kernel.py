"""Kernel distance: the unbiased estimate as it is defined, and as torch-fidelity has it."""

import numpy as np
import pytest
import torch

from sid_scale.evaluate.metrics.kernel import kernel_distance
from sid_scale.ranks import Ranks
from tests.timm_beside import import_torch_fidelity


def features(count: int, size: int, seed: int, shift: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(shift, 1.0, size=(count, size))
    return drawn.astype(np.float32)


def test_it_is_torch_fidelitys_with_one_subset_of_all(ranks: Ranks):
    kid = import_torch_fidelity("metric_kid")
    real, made = features(300, 20, seed=0), features(300, 20, seed=1, shift=0.1)
    theirs = kid.kid_features_to_metric(
        torch.from_numpy(made).double(),
        torch.from_numpy(real).double(),
        kid_subsets=1,
        kid_subset_size=300,
        verbose=False,
    )
    ours = kernel_distance(real, made, ranks)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours > 0


def test_sets_of_different_sizes_are_taken_whole_block_by_block(ranks: Ranks):
    """More rows and columns than are in memory at once."""
    real, made = features(4100, 3, seed=2), features(2100, 3, seed=3, shift=0.2)
    r, m = real.astype(np.float64), made.astype(np.float64)
    rr, mm, rm = ((a @ b.T / 3 + 1) ** 3 for a, b in ((r, r), (m, m), (r, m)))
    np.fill_diagonal(rr, 0)
    np.fill_diagonal(mm, 0)
    expected = rr.sum() / (4100 * 4099) + mm.sum() / (2100 * 2099) - 2 * rm.mean()
    assert kernel_distance(real, made, ranks) == pytest.approx(expected, rel=1e-9)


def test_small_sets_are_right_on_average(ranks: Ranks):
    """The sets of one distribution are at distance 0 on average, however small they are."""
    found = [
        kernel_distance(features(5, 4, seed), features(8, 4, 1000 + seed), ranks)
        for seed in range(400)
    ]
    standard_error = np.std(found) / 20
    assert abs(np.mean(found)) < 3 * standard_error
    assert min(found) < 0


def test_what_is_not_finite_gives_nan(ranks: Ranks):
    made = features(10, 4, seed=0)
    made[3] = np.nan
    assert np.isnan(kernel_distance(features(10, 4, seed=1), made, ranks))
