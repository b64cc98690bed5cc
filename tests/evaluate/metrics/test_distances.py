"""Fréchet distance: against closed forms, and where covariances are singular."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import linalg

from sid_scale.evaluate.metrics.distances import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
)
from tests.timm_beside import import_torch_fidelity


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_statistics_are_mean_and_unbiased_covariance():
    features = np.random.default_rng(0).normal(3.0, 2.0, size=(50, 4))
    statistics = FeatureStatistics.of(features)
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0))
    np.testing.assert_allclose(statistics.cov, np.cov(features, rowvar=False))


def test_statistics_add_up_over_batches():
    features = np.random.default_rng(1).normal(size=(100, 5)).astype(np.float32)
    statistics = FeatureStatistics.empty(5)
    for batch in np.array_split(features, 7):
        statistics = statistics + FeatureStatistics.of(batch)
    whole = FeatureStatistics.of(features)
    assert statistics.count == 100
    np.testing.assert_allclose(statistics.cov, whole.cov, atol=1e-12)
    assert statistics.total.dtype == statistics.outer.dtype == np.float64


def test_known_moments_are_kept():
    mean, cov = np.array([5.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    statistics = FeatureStatistics.from_moments(mean, cov)
    np.testing.assert_allclose(statistics.mean, mean)
    np.testing.assert_allclose(statistics.cov, cov)


def test_same_set_is_at_distance_zero():
    features = np.random.default_rng(2).normal(size=(500, 16))
    statistics = FeatureStatistics.of(features)
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-10)


def test_commuting_covariances_have_a_closed_form():
    """For covariances Q diag(v) Q^T: |shift|^2 + sum (sqrt v - sqrt w)^2."""
    q, rng = rotation(6), np.random.default_rng(3)
    v, w = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    shift = rng.normal(size=6)
    a = FeatureStatistics.from_moments(np.zeros(6), (q * v) @ q.T)
    b = FeatureStatistics.from_moments(shift, (q * w) @ q.T)
    expected = np.square(shift).sum() + np.square(np.sqrt(v) - np.sqrt(w)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_two_dimensions_have_a_closed_form():
    """tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2x2 matrix M = A B."""
    cov_a, cov_b = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    product = cov_a @ cov_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * root
    a = FeatureStatistics.from_moments(np.zeros(2), cov_a)
    b = FeatureStatistics.from_moments(np.zeros(2), cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances_are_exact():
    q = rotation(8, seed=4)
    v = np.array([4.0, 1.0, 0.25, 0, 0, 0, 0, 0])
    w = np.array([1.0, 0, 0.25, 9.0, 0, 0, 0, 0])
    a = FeatureStatistics.from_moments(np.zeros(8), (q * v) @ q.T)
    b = FeatureStatistics.from_moments(np.zeros(8), (q * w) @ q.T)
    expected = np.square(np.sqrt(v) - np.sqrt(w)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_directions_that_both_lack_cost_no_digits():
    """The same 40 of 200 directions; a root of what rounding leaves in the others would show."""
    q, rng = rotation(200, seed=6)[:, :40], np.random.default_rng(7)
    v, w = rng.uniform(0.1, 3, 40), rng.uniform(0.1, 3, 40)
    a = FeatureStatistics.from_moments(np.zeros(200), (q * v) @ q.T)
    b = FeatureStatistics.from_moments(np.zeros(200), (q * w) @ q.T)
    expected = np.square(np.sqrt(v) - np.sqrt(w)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_agrees_with_scipys_root_of_the_product():
    rng = np.random.default_rng(8)
    one, two = rng.normal(size=(400, 30)), rng.normal(0.3, 1.4, size=(300, 30)) @ rotation(30)
    a, b = FeatureStatistics.of(one), FeatureStatistics.of(two)
    root = linalg.sqrtm(a.cov @ b.cov).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.cov + b.cov - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_inception_score_has_closed_forms():
    sure = np.tile(np.eye(5), (20, 1))  # every image a class, every class as often
    assert inception_score([sure], 100) == pytest.approx(5)
    assert inception_score([np.full((100, 5), 0.2)], 100) == pytest.approx(1)
    assert inception_score([sure[:50]], 50, splits=1) == pytest.approx(5)


def test_inception_score_does_not_depend_on_how_the_images_arrive():
    p = np.random.default_rng(9).dirichlet(np.ones(6), size=103)
    edges = [103 * i // 10 for i in range(11)]
    scores = [
        np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean())
        for q in (p[a:b] for a, b in pairwise(edges))
    ]
    for cut in ([103], [1, 102], [50, 51, 2], [7] * 14 + [5]):
        parts = np.split(p, np.cumsum(cut)[:-1])
        assert inception_score(parts, 103) == pytest.approx(np.mean(scores), rel=1e-12)
    assert inception_score([p[:4]], 4) == pytest.approx(1)  # four parts of one image


def test_fewer_samples_than_features_and_constant_features():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(10, 40))
    features[:, :5] = 7.0
    moved = features + 0.5
    distance = frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(moved))
    assert distance == pytest.approx(40 * 0.25, rel=1e-6)


def test_unusable_sets_are_refused():
    one, two = FeatureStatistics.of(np.ones((1, 3))), FeatureStatistics.of(np.eye(3))
    with pytest.raises(ValueError, match="2 samples or more"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match="differ in number"):
        frechet_distance(two, FeatureStatistics.of(np.eye(4)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(two, FeatureStatistics.of(np.full((3, 3), np.nan)))
    with pytest.raises(ValueError, match="not \\(N, D\\)"):
        FeatureStatistics.of(np.ones(3))


def test_it_is_torch_fidelitys():
    fid = import_torch_fidelity("metric_fid")
    rng = np.random.default_rng(8)
    sets = [rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + shift for shift in (0.0, 0.4)]
    theirs = fid.fid_statistics_to_metric(
        *(fid.fid_features_to_statistics(torch.from_numpy(x)) for x in sets), verbose=False
    )
    ours = frechet_distance(*(FeatureStatistics.of(x) for x in sets))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
