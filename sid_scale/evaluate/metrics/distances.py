"""Fréchet distance between two sets of features (FID, arXiv 1706.08500, when they are
Inception's), and Inception Score.

Statistics are sums, so they can be gathered batch by batch and added over processes; they are
held in float64, in which the difference of large sums still has digits left.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import linalg


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums over a set of D features, all float64."""

    count: int
    total: np.ndarray  # (D,), the sum of the features
    outer: np.ndarray  # (D, D), the sum of their outer products

    @classmethod
    def empty(cls, size: int) -> "FeatureStatistics":
        return cls(0, np.zeros(size), np.zeros((size, size)))

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureStatistics":
        """Statistics of features (N, D)."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2:
            raise ValueError(f"features have shape {features.shape}, not (N, D)")
        return cls(len(features), features.sum(axis=0), features.T @ features)

    @classmethod
    def from_moments(cls, mean: np.ndarray, cov: np.ndarray) -> "FeatureStatistics":
        """Statistics whose `mean` (D,) and `cov` (D, D) are known, as EDM's `mu`, `sigma`.

        Their count is lost; two samples of weight 1 stand for the set.
        """
        mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
        return cls(2, 2 * mean, cov + 2 * np.outer(mean, mean))

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        return FeatureStatistics(
            self.count + other.count, self.total + other.total, self.outer + other.outer
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean, (D,)."""
        self._need(1)
        return self.total / self.count

    @property
    def cov(self) -> np.ndarray:
        """Unbiased covariance, (D, D)."""
        self._need(2)
        mean = self.mean
        return (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)

    def _need(self, samples: int) -> None:
        if self.count < samples:
            raise ValueError(f"{samples} samples or more are needed, there are {self.count}")


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for the covariances A and B.

    tr (A B)^(1/2) is the sum of the singular values of sqrt(A) sqrt(B). Unlike the root of the
    product A B it needs no regularisation and no discarded imaginary part when a covariance is
    singular (features that never vary, fewer samples than features), and
    where both sets lack the same directions rounding enters as it is, not as its root: as 1e-16,
    not as 1e-8.

    Raises:
        ValueError: the features differ in number, a set has fewer than two samples, or
            something is not finite.
    """
    if a.total.shape != b.total.shape:
        raise ValueError(f"features differ in number: {a.total.size} and {b.total.size}")
    cov_a, cov_b = a.cov, b.cov
    if not (np.isfinite(cov_a).all() and np.isfinite(cov_b).all()):
        raise ValueError("the statistics hold values that are not finite")
    trace_of_root = linalg.svdvals(_symmetric_root(cov_a) @ _symmetric_root(cov_b)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root)


def inception_score(probabilities: Iterable[np.ndarray], num: int, splits: int = 10) -> float:
    """exp of the mean divergence of p(class | image) from p(class), averaged over `splits` parts
    of the `num` images in their order (arXiv 1606.03498; 10 parts as published, fewer if there
    are fewer images).

    Args:
        probabilities: class probabilities (n, K), `num` rows in all.
    """
    splits = min(splits, num)
    edges = [num * i // splits for i in range(splits + 1)]
    scores: list[float] = []
    count, marginal, negative_entropy = 0, np.zeros(1), 0.0
    for p in _cut(probabilities, edges[1:]):
        count, marginal = count + len(p), marginal + p.sum(axis=0)
        negative_entropy += _plogp(p)
        if count == edges[len(scores) + 1] - edges[len(scores)]:
            scores.append(np.exp(negative_entropy / count - _plogp(marginal / count)))
            count, marginal, negative_entropy = 0, np.zeros(1), 0.0
    return float(np.mean(scores))


def _cut(parts: Iterable[np.ndarray], edges: list[int]) -> Iterable[np.ndarray]:
    """The same rows in float64, in parts none of which runs across an edge."""
    begin = 0
    for part in parts:
        inside = [edge - begin for edge in edges if begin < edge < begin + len(part)]
        yield from np.split(np.asarray(part, np.float64), inside)
        begin += len(part)


def _plogp(p: np.ndarray) -> float:
    """Sum of p log p; 0 log 0 is 0."""
    return float((p * np.log(np.where(p > 0, p, 1.0))).sum())


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = linalg.eigh(_symmetrised(matrix))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _symmetrised(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2
