"""Every quantity that runs have recorded, as plots: one run's, or several in one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from sid_scale.report.curves import (
    MOST_POINTS,
    Curve,
    Level,
    curve_of,
    levels_of,
    metric_curve,
    metrics_of,
    width_curves,
)
from sid_scale.report.measurements import in_order, metric_kind
from sid_scale.report.plots import draw
from sid_scale.report.read import RunFolder
from sid_scale.report.tables import count, heading, number

LOSS = "loss/"
NO_CURVE = {"images_seen", "time", "images_per_second_per_device", "step_seconds/slowest_rank"}
AXES = ("images", "hours")


@dataclass(frozen=True)
class Plots:
    """One quantity, over images and over hours as far as they are known."""

    title: str
    drawings: tuple[Markup, ...]
    note: str = ""


def metric_plots(runs: Sequence[RunFolder], prefix: str) -> list[Plots]:
    """Every metric that is known of the runs' generators, with the teachers' lines."""
    plots = []
    for metric in in_order(set().union(*(metrics_of(run) for run in runs))):
        curves = [metric_curve(run, metric) for run in runs]
        if len(runs) == 1:  # beside teachers, not beside other runs
            curves = [curve and _renamed(curve, "generator") for curve in curves]
        levels, title = levels_of(runs, metric), metric_kind(metric).title
        drawings = _drawn(curves, name=f"{prefix}-{_word(metric)}", levels=levels, title=title)
        if drawings:
            plots.append(Plots(heading(metric), drawings, _samples_note(curves, levels)))
    return plots


def width_plots(run: RunFolder, prefix: str) -> list[Plots]:
    """Every metric that is known of a run's averages of several widths, over the width."""
    plots = []
    for metric in in_order(metrics_of(run)):
        curves = width_curves(run, metric)
        drawing = draw(
            curves,
            name=f"{prefix}-{_word(metric)}-widths",
            over="widths",
            description=f"{metric_kind(metric).title} over the relative width of the average",
        )
        if drawing is not None:
            note = " ".join(dict.fromkeys(_best_width(curve, metric) for curve in curves))
            plots.append(Plots(heading(metric), (drawing,), f"{_samples_note(curves, ())} {note}"))
    return plots


def _best_width(curve: Curve, metric: str) -> str:
    """At which width a metric is best, in a few words; nothing if it does not say what is."""
    better = metric_kind(metric).better
    if not better or curve.widths is None:
        return ""
    best = curve.values.argmin() if better == "lower" else curve.values.argmax()
    value = number(float(curve.values[best]))
    return f"Best: {value} at width {curve.widths[best]:g}, {curve.run}."


def loss_plots(runs: Sequence[RunFolder], prefix: str) -> list[Plots]:
    """The losses."""
    plots = []
    for loss in _names(runs, lambda name: name.startswith(LOSS)):
        curves = [curve_of(run, loss) for run in runs]
        title = loss.removeprefix(LOSS).replace("_", " ")
        drawings = _drawn(curves, name=f"{prefix}-{_word(loss)}", title=title)
        if drawings:
            plots.append(Plots(title, drawings, _note(curves)))
    return plots


def other_plots(run: RunFolder, prefix: str) -> list[Plots]:
    """All else that a run has recorded, over images; names with a common beginning together."""
    groups: dict[str, list[str]] = {}
    for name in _names([run], lambda name: not name.startswith((LOSS, "evaluation/"))):
        if name not in NO_CURVE:
            groups.setdefault(name.split("/")[0], []).append(name)
    plots = []
    for i, (group, names) in enumerate(sorted(groups.items())):
        found = [(name, curve_of(run, name)) for name in names]
        curves = [_renamed(c, name) for name, c in found if c is not None]
        drawing = draw(
            curves,
            name=f"{prefix}-other{i}",
            over="images",
            description=f"{group} over images seen",
        )
        if drawing is not None:
            plots.append(Plots(group.replace("_", " "), (drawing,), _note(curves)))
    return plots


def _drawn(
    curves: Sequence[Curve | None], *, name: str, title: str, levels: Sequence[Level] = ()
) -> tuple[Markup, ...]:
    drawings = (
        draw(
            curves,
            name=f"{name}-{over}",
            over=over,
            description=f"{title} over {'images seen' if over == 'images' else 'hours'}",
            levels=levels,
        )
        for over in AXES
    )
    return tuple(drawing for drawing in drawings if drawing is not None)


def _note(curves: Sequence[Curve | None]) -> str:
    most = max((len(curve.values) for curve in curves if curve is not None), default=0)
    if most <= MOST_POINTS:
        return ""
    per_point = -(-most // MOST_POINTS)
    return f"{most:,} records: the line is the mean of up to {per_point}, the band their range."


def _samples_note(curves: Sequence[Curve | None], levels: Sequence[Level]) -> str:
    """On how many images the figures of a plot rest."""
    nums = {x.num for x in (*curves, *levels) if x is not None and x.num is not None}
    if len(nums) > 1:
        return f"Of {' or '.join(count(num) for num in sorted(nums))} images: see the table."
    return f"Of {count(*nums)} images." if nums else ""


def _names(runs: Sequence[RunFolder], wanted: Callable[[str], bool]) -> list[str]:
    """Names in the runs' records, in the order in which they first come."""
    names = dict.fromkeys(name for run in runs for record in run.records for name in record)
    return [name for name in names if wanted(name)]


def _renamed(curve: Curve, name: str) -> Curve:
    label = name.split("/", 1)[-1].replace("_", " ")
    return replace(curve, run=label)


def _word(name: str) -> str:
    """A name as a part of an id: no two names give the same."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in name)
