"""Monge distance: a shift costs its square, an order costs nothing."""

import numpy as np
import pytest
import torch

from sid_scale.evaluate.metrics.monge import monge_distance
from sid_scale.ranks import Ranks


def features(count: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_it_is_the_mean_squared_distance_of_sorted_projections_times_three_d(ranks: Ranks):
    real, made = features(150, 7, seed=0), 1.5 * features(150, 7, seed=1)
    directions = torch.randn(1000, 7, generator=torch.Generator().manual_seed(2020)).numpy()
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float64)
    costs = [
        np.square(np.sort(made.astype(np.float64) @ u) - np.sort(real.astype(np.float64) @ u))
        for u in directions
    ]
    assert monge_distance(real, made, ranks) == pytest.approx(3 * 7 * np.mean(costs), rel=1e-5)


def test_a_shift_costs_three_times_its_square_whatever_the_order(ranks: Ranks):
    real = features(3000, 16, seed=2)  # more than are projected at once
    shift = np.zeros(16, np.float32)
    shift[3] = 2.0
    made = np.random.default_rng(0).permutation(real + shift)
    assert monge_distance(real, made, ranks) == pytest.approx(3 * 4.0, rel=0.15)
    assert monge_distance(real, np.flip(real, axis=0).copy(), ranks) == pytest.approx(0, abs=1e-9)


def test_of_the_larger_set_as_many_are_taken_evenly_spread(ranks: Ranks):
    real, made = features(301, 5, seed=3), features(100, 5, seed=4)
    taken = real[np.arange(100) * 301 // 100]
    assert monge_distance(real, made, ranks) == monge_distance(taken, made, ranks)
    assert monge_distance(made, real, ranks) == monge_distance(made, taken, ranks)


def test_what_is_not_finite_gives_nan(ranks: Ranks):
    made = features(10, 4, seed=0)
    made[3] = np.nan
    assert np.isnan(monge_distance(features(10, 4, seed=1), made, ranks))
