"""Every quantity that runs have recorded, as plots: one run's, or several in one."""

from collections.abc import Callable, Mapping, Sequence
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
from sid_scale.report.tables import count, heading, metric_title, number
from sid_scale.report.titles import LOSS, loss_title, titled

NO_CURVE = {"images_seen", "time", "images_per_second_per_device", "step_seconds/slowest_rank"}
AXES = {"images": "images seen", "hours": "training time"}


@dataclass(frozen=True)
class Plot:
    """One quantity, drawn over each axis that is known: the page shows one drawing at a time."""

    title: str
    drawings: Mapping[str, Markup]  # by axis: of AXES, or "widths"
    note: str = ""

    @property
    def has_choice(self) -> bool:
        """Whether a reader may choose the axis."""
        return AXES.keys() <= self.drawings.keys()


def metric_plots(runs: Sequence[RunFolder], prefix: str) -> list[Plot]:
    """Every metric that is known of the runs' generators, with the teachers' lines."""
    plots = []
    for metric in in_order(set().union(*(metrics_of(run) for run in runs))):
        curves = [metric_curve(run, metric) for run in runs]
        if len(runs) == 1:  # beside teachers, not beside other runs
            curves = [curve and replace(curve, run="generator") for curve in curves]
        levels, title = levels_of(runs, metric), metric_title(metric)
        drawings = _drawn(curves, name=f"{prefix}-{_word(metric)}", levels=levels, title=title)
        if drawings:
            plots.append(Plot(heading(metric), drawings, _samples_note(curves, levels)))
    return plots


def width_plots(run: RunFolder, prefix: str) -> list[Plot]:
    """Every metric that is known of a run's averages of several widths, over the width."""
    plots = []
    for metric in in_order(metrics_of(run)):
        curves = width_curves(run, metric)
        drawing = draw(
            curves,
            name=f"{prefix}-{_word(metric)}-widths",
            over="widths",
            description=f"{metric_title(metric)} over the relative width of the average",
        )
        if drawing is not None:
            note = " ".join(dict.fromkeys(_best_width(curve, metric) for curve in curves))
            plots.append(
                Plot(heading(metric), {"widths": drawing}, f"{_samples_note(curves, ())} {note}")
            )
    return plots


def _best_width(curve: Curve, metric: str) -> str:
    """At which width a metric is best, in a few words; nothing if it does not say what is."""
    better = metric_kind(metric).better
    if not better or curve.widths is None:
        return ""
    best = curve.values.argmin() if better == "lower" else curve.values.argmax()
    value = number(float(curve.values[best]))
    return f"Best: {value} at width {curve.widths[best]:g}, {curve.run}."


def loss_plots(runs: Sequence[RunFolder], prefix: str) -> list[Plot]:
    """The losses."""
    plots = []
    for loss in _names(runs, lambda name: name.startswith(LOSS)):
        curves = [curve_of(run, loss) for run in runs]
        plots += _plot(curves, name=f"{prefix}-{_word(loss)}", title=loss_title(loss))
    return plots


def other_plots(run: RunFolder, prefix: str) -> list[Plot]:
    """All else that a run has recorded; quantities of one kind together."""
    groups: dict[str, dict[str, str]] = {}
    for name in _names([run], lambda name: not name.startswith((LOSS, "evaluation/"))):
        if name not in NO_CURVE:
            title, label = titled(name)
            groups.setdefault(title, {})[name] = label
    plots = []
    for i, (title, labels) in enumerate(sorted(groups.items())):
        plots += _plot(_labelled(run, labels), name=f"{prefix}-other{i}", title=title)
    return plots


def _labelled(run: RunFolder, labels: Mapping[str, str]) -> list[Curve]:
    """Curves of one run's quantities, by label."""
    found = ((label, curve_of(run, name)) for name, label in labels.items())
    return [replace(curve, run=label) for label, curve in found if curve is not None]


def _plot(curves: Sequence[Curve | None], *, name: str, title: str) -> list[Plot]:
    """The plot of curves; none if there is nothing to draw."""
    drawings = _drawn(curves, name=name, title=title)
    return [Plot(title, drawings, _note(curves))] if drawings else []


def _drawn(
    curves: Sequence[Curve | None], *, name: str, title: str, levels: Sequence[Level] = ()
) -> dict[str, Markup]:
    drawings = {
        over: draw(
            curves,
            name=f"{name}-{over}",
            over=over,
            description=f"{title} over {axis}",
            levels=levels,
        )
        for over, axis in AXES.items()
    }
    return {over: drawing for over, drawing in drawings.items() if drawing is not None}


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
        several = " or ".join(count(num) for num in sorted(nums))
        return f"Measured on {several} images: see the table."
    return f"Measured on {count(*nums)} images." if nums else ""


def _names(runs: Sequence[RunFolder], wanted: Callable[[str], bool]) -> list[str]:
    """Names in the runs' records, in the order in which they first come."""
    names = dict.fromkeys(name for run in runs for record in run.records for name in record)
    return [name for name in names if wanted(name)]


def _word(name: str) -> str:
    """A name as a part of an id: no two names give the same."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in name)
