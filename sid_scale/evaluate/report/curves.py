"""Records of a run as curves over images seen and over hours, thinned for drawing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sid_scale.evaluate.report.measurements import GENERATOR, TEACHER, Network
from sid_scale.evaluate.report.read import RunFolder

MOST_POINTS = 300  # of a curve that is drawn; more would be finer than a screen
EVALUATION = "evaluation/"  # what names of metrics begin with in metrics.jsonl
Record = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Curve:
    """A quantity of one run; all arrays (N,), and only where the quantity is finite."""

    run: str
    images: np.ndarray
    hours: np.ndarray  # nan where nothing tells
    values: np.ndarray
    low: np.ndarray  # of the records that a point stands for
    high: np.ndarray
    per_point: int = 1  # records that a point stands for, at most


@dataclass(frozen=True)
class Level:
    """A teacher's value: a line to compare with."""

    label: str
    value: float


def curve_of(run: RunFolder, name: str) -> Curve | None:
    """A quantity in a run's records; None if it is in none of them."""
    hours = hours_of(run.records)
    points = [
        (record["images_seen"], hour, record[name])
        for record, hour in zip(run.records, hours, strict=True)
        if record.get(name) is not None
    ]
    return _curve(run.name, points)


def metric_curve(run: RunFolder, metric: str) -> Curve | None:
    """A metric of a run's generators: while it trained, and of evaluations afterwards.

    What was evaluated at the same number of images while training stands back behind an
    evaluation of its own, which has more samples.
    """
    hours = hours_of(run.records)
    measured = {
        record["images_seen"]: record[EVALUATION + metric]
        for record in run.records
        if record.get(EVALUATION + metric) is not None
    }
    for evaluation in run.evaluations:
        network = evaluation.network
        unguided = network.kind == GENERATOR and network.images_seen is not None
        if unguided and metric in evaluation.values:
            measured[float(network.images_seen or 0)] = evaluation.values[metric]
    seen = [record["images_seen"] or 0.0 for record in run.records]
    points = [
        (images, _hour_at(images or 0.0, seen, hours), value)
        for images, value in sorted(measured.items(), key=lambda item: item[0] or 0)
    ]
    return _curve(run.name, points)


def metrics_of(run: RunFolder) -> set[str]:
    """Metrics that are known of a run's generators or teachers."""
    while_training = {
        name.removeprefix(EVALUATION)
        for record in run.records
        for name, value in record.items()
        if name.startswith(EVALUATION) and value is not None
    }
    return while_training.union(*(evaluation.values for evaluation in run.evaluations))


def levels_of(runs: Sequence[RunFolder], metric: str) -> list[Level]:
    """The teachers' values, each once, by their number of evaluations."""
    found: dict[Network, float] = {}
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.network.kind == TEACHER and metric in evaluation.values:
                found[evaluation.network] = evaluation.values[metric]
    titles = Counter(network.title for network in found)
    ordered = sorted(found, key=lambda n: (n.evaluations or 0, n.title, n.sha256))
    return [
        Level(
            n.title if titles[n.title] == 1 else f"{n.title} ({Path(n.path).name or n.sha256[:8]})",
            found[n],
        )
        for n in ordered
    ]


def hours_of(records: Sequence[Record]) -> np.ndarray:
    """Hours of training up to each record, (N,); nan from where on neither rate nor time tells.

    A record's rate is that of the images since the one before, with all that happened between
    them: checkpoints, pictures, evaluations. Pauses between an end and a resumption are not in it.
    """
    hours = np.full(len(records), np.nan)
    so_far, images_before, time_before = 0.0, 0.0, None
    for i, record in enumerate(records):
        images, time = record["images_seen"] or 0.0, record.get("time")
        rate = record.get("images_per_second")
        if rate is not None and rate > 0:
            so_far += (images - images_before) / rate / 3600
        elif time is not None and time_before is not None and time >= time_before:
            so_far += (time - time_before) / 3600
        elif i > 0 or images > 0:
            so_far = np.nan
        hours[i] = so_far
        images_before, time_before = images, time
    return hours


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most `most` points: means of as many neighbouring ones each, and the range of those."""
    count = len(curve.values)
    if count <= most:
        return curve
    per_point = -(-count // most)
    edges = [*range(0, count, per_point), count]
    parts = [slice(first, last) for first, last in pairwise(edges)]

    def means(array: np.ndarray) -> np.ndarray:
        return np.array([array[part].mean() for part in parts])

    return Curve(
        curve.run,
        means(curve.images),
        means(curve.hours),
        means(curve.values),
        np.array([curve.low[part].min() for part in parts]),
        np.array([curve.high[part].max() for part in parts]),
        per_point,
    )


def _hour_at(images: float, seen: Sequence[float], hours: np.ndarray) -> float:
    """The hour at which so many images had been seen, between records by proportion."""
    known = np.isfinite(hours)
    if not known.any() or images > seen[-1]:
        return float("nan")
    at = np.concatenate([[0.0], np.asarray(seen)[known]])
    return float(np.interp(images, at, np.concatenate([[0.0], hours[known]])))


def _curve(run: str, points: Sequence[tuple[float | None, float, float | None]]) -> Curve | None:
    if not points:
        return None
    images, hours, values = np.array(points, dtype=np.float64).T
    return Curve(run, images, hours, values, values, values)
