"""Curves as SVG that takes its colours and its type from the page.

matplotlib draws with stand-in colours, which are then replaced by the style sheet's variables: so
one drawing is right on light and on dark paper. Text stays text. The same curves give the same
bytes.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sid_scale.report.curves import Curve, Level, thinned

SERIES = 6  # colours of runs, --series-0 ...; then they begin again, dashed
WIDTH, HEIGHT, LINE = 5.0, 2.8, 0.19  # inches, of a plot and of a line of its legend; a phone
# shows this at its full size
FEW = 40  # points up to which each is marked
LONGEST_LABEL, HALF_A_LINE = 50, 24  # characters of a legend
IMAGES_SEEN = "images seen"
MOST_DECADES = 2.5  # up to which a logarithmic axis has room for 1, 2 and 5 of each
LOG_FROM = 8.0  # ratio of largest to smallest value from which a logarithmic axis reads better

_INK, _FAINT = "#0a0b01", "#0a0b02"
_COLOURS = [f"#0a0c{i:02x}" for i in range(SERIES)]
_LEVELS = [f"#0a0d{i:02x}" for i in range(3)]
_LEVEL_DASHES = [(0, (5, 2.5)), (0, (2.5, 2)), (0, (1, 1.6))]
_VARIABLES = {
    _INK: "var(--ink-soft)",
    _FAINT: "var(--rule)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_COLOURS)},
    **{colour: f"var(--level-{i})" for i, colour in enumerate(_LEVELS)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sid_scale",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "text.usetex": False,
    "text.parse_math": False,
}


def draw(
    curves: Sequence[Curve | None],
    *,
    name: str,
    over: str,
    levels: Sequence[Level] = (),
    description: str,
) -> Markup | None:
    """One plot as an `<svg>` element; None if there is no curve over that axis.

    Args:
        curves: of one quantity, one a run, None where a run has none; the place gives the colour.
        name: a word that no other plot of the page has, for its ids.
        over: "images", "hours" or "widths".
        levels: the teachers' lines.
        description: of the plot, for those who do not see it. Its heading on the page names the
            quantity.
    """
    points = max((len(curve.values) for curve in curves if curve is not None), default=0)
    if points < 2 and not levels:
        return None  # a point beside nothing is no curve, and stands in a table
    drawn = [
        (place, thinned(curve))
        for place, curve in enumerate(curves)
        if curve is not None and _is_over(curve, over)
    ]
    if not drawn:
        return None
    unit = _unit(over, max(float(np.nanmax(getattr(curve, over))) for _, curve in drawn))
    with matplotlib.rc_context(_STYLE):
        names = [_legible(curve.run) for _, curve in drawn]
        names += [_legible(level.label) for level in levels]
        columns = 2 if max(map(len, names)) <= HALF_A_LINE else 1
        lines = -(-len(names) // columns) if levels or len(curves) > 1 else 0
        figure = Figure(figsize=(WIDTH, HEIGHT + LINE * lines), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for index, curve in drawn:
            _draw_curve(axes, curve, getattr(curve, over) * unit.per, index)
        for index, level in enumerate(levels):
            _draw_level(axes, level, index)
        _finish(axes, [curve for _, curve in drawn], levels, unit)
        if lines:
            figure.legend(
                loc="outside upper left",
                ncols=columns,
                frameon=False,
                fontsize=9.5,
                handlelength=2.4,
            )
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return _for_the_page(file.getvalue(), name, description)


def _is_over(curve: Curve, over: str) -> bool:
    axis: np.ndarray | None = getattr(curve, over)
    return axis is not None and bool(np.isfinite(axis).any())


def _draw_curve(axes: Axes, curve: Curve, x: np.ndarray, index: int) -> None:
    colour = _COLOURS[index % SERIES]
    if curve.per_point > 1:
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        x,
        curve.values,
        color=colour,
        linewidth=1.6,
        linestyle="-" if index < SERIES else "--",
        marker="o" if len(x) <= FEW else "",
        markersize=3.2,
        clip_on=False,  # a first point at 0 images is seen whole
        label=_legible(curve.run),
    )


def _draw_level(axes: Axes, level: Level, index: int) -> None:
    axes.axhline(
        level.value,
        color=_LEVELS[index % len(_LEVELS)],
        linewidth=1.2,
        linestyle=_LEVEL_DASHES[index % len(_LEVEL_DASHES)],
        label=_legible(level.label),
    )


def _finish(axes: Axes, curves: Sequence[Curve], levels: Sequence[Level], unit: "_Unit") -> None:
    values = np.concatenate([*(c.values for c in curves), [level.value for level in levels]])
    if values.min() > 0 and values.max() / values.min() > LOG_FROM:
        axes.set_yscale("log")
        decades = np.log10(values.max() / values.min())
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if decades <= MOST_DECADES else (1,))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.08)
    if not values.any():
        axes.set_ylim(0, 1)  # nothing was skipped: no negative numbers below
    axes.set_xlim(left=0)
    axes.set_xlabel(unit.label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if unit.label == IMAGES_SEEN:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)


class _Unit(NamedTuple):
    """Of the axis below: its name, and how many of it are one of the curves'."""

    label: str
    per: float = 1.0


def _unit(over: str, longest: float) -> _Unit:
    if over == "images":
        return _Unit(IMAGES_SEEN)
    if over == "widths":
        return _Unit("relative width of the average")
    return _Unit("hours of training") if longest >= 1 else _Unit("minutes of training", 60.0)


def _legible(label: str) -> str:
    """For a legend: not longer than it has room; matplotlib would leave out what begins with _."""
    short = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _for_the_page(svg: str, name: str, description: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # would hold for the whole page
    svg = re.sub(r"font-family: [^;\"]*;?|font: ([\d.]+px)[^;\"]*;?", _only_size, svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    opening = re.search(r'viewBox="[^"]*"', svg)
    assert opening is not None  # matplotlib always writes one
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    title = Markup("<title>{}</title>").format(description)
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" role="img" {}>{}{}').format(
        Markup(opening[0]), title, Markup(body)
    )


def _only_size(font: re.Match[str]) -> str:
    return f"font-size: {font[1]};" if font[1] else ""
