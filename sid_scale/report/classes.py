"""Few classes, one by one: does each look like itself, and is it as varied as the real one?

With a few dozen samples a class, distances of distributions say little. What is counted here
holds up: whose image is the nearest real one, how near it is, and how far samples of a class are
from each other, all of latents (of a pixel model: pixels) averaged down to 8x8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sid_scale.report.neighbours import Features

MOST_REAL = 100  # real images a class that are compared with all the others
AT_ONCE = 512


@dataclass(frozen=True)
class ClassRow:
    """One class; distances are root mean squares over the features. nan: too few images."""

    label: int
    real: int  # searched
    generated: int
    own_class: float  # share of samples whose nearest real image is of their class
    own_class_real: float  # the same of real images, each without itself
    nearest: float  # median distance of a sample to the nearest real image
    nearest_real: float  # of a real image to the nearest other one
    variety: float  # mean distance between two samples, over that between two real images


def class_rows(generated: Features, real: Features, num_classes: int) -> list[ClassRow]:
    """The table, a row a class."""
    rows = []
    for label in range(num_classes):
        samples = generated.values[generated.labels == label]
        places = (real.labels == label).nonzero().flatten()
        some = places[:MOST_REAL]
        images = real.values[some]
        own, near = _nearest(samples, real, None)
        own_real, near_real = _nearest(images, real, some)
        rows.append(
            ClassRow(
                label,
                len(places),
                len(samples),
                _mean((own == label).double()),
                _mean((own_real == label).double()),
                _median(near),
                _median(near_real),
                _ratio(_spread(samples), _spread(images[: len(samples)])),
            )
        )
    return rows


def _nearest(queries: Tensor, real: Features, places: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of queries (Q, D): labels (Q,) of the nearest real images, and distances (Q,).

    `places` (Q,) are the queries' own among the real ones, where they are left out.
    """
    labels, distances = [], []
    scale = queries.shape[1] ** -0.5
    for first in range(0, len(queries), AT_ONCE):
        part = torch.cdist(queries[first : first + AT_ONCE], real.values)
        if places is not None:
            part.scatter_(1, places[first : first + AT_ONCE, None], torch.inf)
        near, which = part.min(dim=1)
        labels.append(torch.where(near.isfinite(), real.labels[which], -1))
        distances.append(near * scale)
    if not labels:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat(labels), torch.cat(distances)


def _spread(features: Tensor) -> float:
    """Mean distance between two different ones of (N, D)."""
    return _mean(torch.pdist(features).double())


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _median(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.double().quantile(0.5)) if len(finite) else float("nan")
