"""Records of a run as curves over images seen and over hours, thinned for drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from sid_scale.report.measurements import (
    GENERATOR,
    TEACHER,
    Measurement,
    Network,
    in_order,
    metric_kind,
)
from sid_scale.report.read import METRICS, RunFolder, names_of

MOST_POINTS = 300  # of a curve that is drawn; more would be finer than a screen
EVALUATION = "evaluation/"  # what names of metrics begin with in metrics.jsonl
Record = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Curve:
    """A quantity of one run; all arrays (N,), and only where the quantity is finite."""

    run: str
    images: np.ndarray
    hours: np.ndarray  # nan where nothing says
    values: np.ndarray
    low: np.ndarray  # of the records that a point stands for
    high: np.ndarray
    per_point: int = 1  # records that a point stands for, at most
    num: int | None = None  # images that a metric rests on
    widths: np.ndarray | None = None  # of averages at one moment; then nothing is over the others


@dataclass(frozen=True)
class Level:
    """A teacher's value: a line to compare with."""

    label: str
    value: float
    num: int | None = None  # images that it rests on


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
    """A metric of a run's generators, while it trained or of snapshots evaluated afterwards.

    All points rest on the same number of images, that of which there are the most points: of fewer
    images a Fréchet distance comes out larger, and would bend the curve.
    """
    by_num: dict[int | None, dict[float, float]] = {}
    in_training = training_num(run)
    for record in run.records:
        images, value = record["images_seen"], record.get(EVALUATION + metric)
        if images is not None and value is not None:
            by_num.setdefault(in_training, {})[images] = value
    for evaluation in run.evaluations:
        network = evaluation.network
        of_the_run = network.kind == GENERATOR and network.images_seen is not None
        of_the_run = of_the_run and network.relative_width is None
        if of_the_run and metric in evaluation.values:
            points_of_num = by_num.setdefault(evaluation.num, {})
            points_of_num[float(network.images_seen or 0)] = evaluation.values[metric]
    if not by_num:
        return None
    num, measured = max(by_num.items(), key=lambda item: (len(item[1]), item[0] or 0))
    seen = [record["images_seen"] or 0.0 for record in run.records]
    hours = hours_of(run.records)
    points = [
        (images, _hour_at(images, seen, hours), value) for images, value in sorted(measured.items())
    ]
    curve = _curve(run.name, points)
    return curve and replace(curve, num=num)


def width_curves(run: RunFolder, metric: str) -> list[Curve]:
    """A metric over the relative width of averages that were reconstructed.

    A curve joins what can be compared: of one moment, one number of images, the same seeds and one
    reference. Widths differ by less than other seeds make.
    """
    found: dict[tuple[int, int, int, str], dict[float, float]] = {}
    for evaluation in run.evaluations:
        network = evaluation.network
        if network.relative_width is not None and metric in evaluation.values:
            moment, num, seed = network.images_seen, evaluation.num, evaluation.first_seed
            reference = evaluation.hashes.get(f"reference {metric}", "")
            sweep = found.setdefault((moment or 0, num or 0, seed or 0, reference), {})
            sweep[network.relative_width] = evaluation.values[metric]
    curves = []
    for (images_seen, num, seed, _), points in sorted(found.items()):
        widths, values = np.array(sorted(points.items())).T
        nowhere = np.full(len(widths), np.nan)
        label = f"{images_seen:,} images seen, seeds from {seed:,}"
        curve = Curve(label, nowhere, nowhere, values, values, values, num=num, widths=widths)
        curves.append(curve)
    return curves


def training_evaluations(run: RunFolder) -> list[Measurement]:
    """What was measured while training, last and at its best: by the metric that decided in the
    run, or else the first that says what is better."""
    measured = []
    for record in run.records:
        found = {
            name.removeprefix(EVALUATION): value
            for name, value in record.items()
            if name.startswith(EVALUATION) and value is not None
        }
        if found:
            network = Network(GENERATOR, images_seen=int(record["images_seen"] or 0))
            num, first_seed = training_num(run), _evaluation_setting(run, "first_seed")
            measured.append(Measurement(Path(METRICS), network, found, num, first_seed))
    if not measured:
        return []
    last = measured[-1]
    names = [*_deciding(run), *in_order(last.values)]
    decides = next((n for n in names if n in last.values and metric_kind(n).better), None)
    if decides is None:
        return [last]
    sign = 1 if metric_kind(decides).better == "lower" else -1
    comparable = [evaluation for evaluation in measured if decides in evaluation.values]
    best = min(comparable, key=lambda evaluation: sign * evaluation.values[decides])
    return [last] if best is last else [best, last]


def _deciding(run: RunFolder) -> list[str]:
    """The metrics of a run's settings, that first by which the best generator is chosen."""
    settings = run.config.get("evaluation")
    if not isinstance(settings, Mapping):
        return []
    metrics = settings.get("metrics")
    named = [settings.get("best_by"), *(metrics if isinstance(metrics, list) else [])]
    return [name for name in named if isinstance(name, str)]


def training_num(run: RunFolder) -> int | None:
    """Images on which a metric rests that is measured while training; None if nothing says."""
    return _evaluation_setting(run, "num")


def _evaluation_setting(run: RunFolder, key: str) -> int | None:
    settings = run.config.get("evaluation")
    value = settings.get(key) if isinstance(settings, Mapping) else None
    return value if isinstance(value, int) else None


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
    found: dict[Network, Measurement] = {}
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.network.kind == TEACHER and metric in evaluation.values:
                found[evaluation.network] = evaluation
    ordered = sorted(found, key=lambda n: (n.evaluations or 0, n.title, n.sha256))
    return [
        Level(label, found[network].values[metric], found[network].num)
        for network, label in zip(ordered, _labels(ordered), strict=True)
    ]


def _labels(networks: Sequence[Network]) -> list[str]:
    """The networks' titles; of those with the same title also where they are, or their hash."""
    same: dict[str, list[Network]] = {}
    for network in networks:
        same.setdefault(network.title, []).append(network)
    labels: dict[Network, str] = {}
    for title, alike in same.items():
        paths = [Path(network.path) for network in alike]
        if len(alike) == 1:
            names = [""]
        elif all(network.path for network in alike) and len(set(paths)) == len(paths):
            names = [f" ({name})" for name in names_of(paths)]
        else:
            names = [f" ({network.sha256[:8]})" for network in alike]
        labels |= dict(zip(alike, (title + name for name in names), strict=True))
    return [labels[network] for network in networks]


def hours_of(records: Sequence[Record]) -> np.ndarray:
    """Hours of training up to each record, (N,); nan from where on neither rate nor time says.

    A record's rate is that of the images since the one before. It leaves out pauses: evaluations,
    sample grids, snapshots and checkpoints, and the time between an end and a resumption.
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

    return replace(
        curve,
        images=means(curve.images),
        hours=means(curve.hours),
        values=means(curve.values),
        low=np.array([curve.low[part].min() for part in parts]),
        high=np.array([curve.high[part].max() for part in parts]),
        per_point=per_point,
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
