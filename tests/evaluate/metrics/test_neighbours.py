"""Precision, recall, density and coverage: as they are defined, and where they are known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from sid_scale.evaluate.metrics.neighbours import neighbour_metrics
from sid_scale.ranks import Ranks
from tests.timm_beside import import_torch_fidelity


def features(count: int, size: int, seed: int, scale: float = 1.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0.0, scale, size=(count, size))
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Real features, more than there are columns in memory at once, and made ones."""
    return features(4100, 3, seed=0), features(2100, 3, seed=1, scale=0.8)


def test_precision_and_recall_are_torch_fidelitys(ranks: Ranks):
    real, made = features(400, 6, seed=2), features(300, 6, seed=3, scale=0.7)
    theirs = import_torch_fidelity("metric_prc").prc_features_to_metric(
        torch.from_numpy(made).double(), torch.from_numpy(real).double(), verbose=False
    )
    ours = neighbour_metrics(real, made, ranks)
    for name in ("precision", "recall"):
        assert 0 < ours[name] < 1
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)


def test_density_and_coverage_are_the_papers(ranks: Ranks, sets: tuple[np.ndarray, np.ndarray]):
    """arXiv 2002.09797, with k = 5."""
    real, made = (x.astype(np.float64) for x in sets)
    reach = np.sort(cdist(real, real), axis=1)[:, 5]
    is_in = cdist(real, made) <= reach[:, None]
    found = neighbour_metrics(*sets, ranks)
    assert found["density"] == pytest.approx(is_in.sum() / (5 * len(made)), rel=1e-6)
    assert found["coverage"] == pytest.approx(is_in.any(axis=1).mean(), abs=1e-3)
    assert found["density"] > 1  # the made ones are where the real ones are dense


def test_of_one_distribution_density_is_one_and_coverage_what_chance_leaves(ranks: Ranks):
    """That of coverage depends on nothing but k and the counts (arXiv 2002.09797)."""
    count, k = 400, 5
    found = [
        neighbour_metrics(features(count, 4, seed), features(count, 4, 1000 + seed), ranks)
        for seed in range(12)
    ]
    missed = math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(1 - missed, abs=0.01)


def test_outliers_count_for_recall_but_not_for_coverage(ranks: Ranks):
    """One made feature far away has a ball around most real ones, and is in none of theirs."""
    real = features(200, 3, seed=6)
    made = np.concatenate([real[:20] + 0.01, np.full((1, 3), 50.0, np.float32)])
    found = neighbour_metrics(real, made, ranks)
    assert found["recall"] > 0.9
    assert found["coverage"] < 0.7
    copies = neighbour_metrics(real, real.copy(), ranks)
    assert copies == {"precision": 1, "recall": 1, "density": pytest.approx(6 / 5), "coverage": 1}


def test_what_is_not_finite_gives_nan(ranks: Ranks):
    made = features(10, 4, seed=0)
    made[3] = np.nan
    found = neighbour_metrics(features(10, 4, seed=1), made, ranks)
    assert all(math.isnan(value) for value in found.values())
