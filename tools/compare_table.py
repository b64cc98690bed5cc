"""The table and the figure of what `compare_methods.py` measured, from its results alone."""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from compare_rows import LATENTS, PIXELS, ROWS, Row

from sid_scale.atomic import atomic_write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TITLES = {LATENTS: "Latents", PIXELS: "Pixels"}
COLUMNS = (
    "method",
    "distance, equal images",
    "distance, equal time",
    "images then",
    "accuracy",
    "precision",
    "recall",
    "s / 1,000 images",
    "peak MB",
)

SHARES = ("accuracy", "precision", "recall")

LINES: dict[str, Any] = {  # of references
    "real digits, other half": {"color": "grey", "ls": ":"},
    "teacher, 17 evaluations": {"color": "C1", "ls": "--"},
    "teacher, 35 evaluations": {"color": "C3", "ls": "--"},
}

Point = Mapping[str, float]  # images, seconds, distance, accuracy, precision, recall
Run = Mapping[str, Any]  # row, seed, points, peak_megabytes


class Measured(NamedTuple):
    """All runs of one row: `points` of each along the whole road of its images."""

    row: Row
    roads: list[list[Point]]  # by seed
    peak_megabytes: list[float]

    def at_the_end(self, key: str) -> list[float]:
        return [road[-1][key] for road in self.roads]

    def at_time(self, key: str, seconds: float) -> list[float]:
        return [interpolated(road, "seconds", seconds)[key] for road in self.roads]


# --- numbers ------------------------------------------------------------------------------


def interpolated(points: Sequence[Point], by: str, place: float) -> Point:
    """The point where `by` has reached `place`: on the straight line between two of `points`.

    Beyond the last point it is the last one.

    Raises:
        ValueError: `place` comes before the first point.
    """
    if place < points[0][by]:
        raise ValueError(f"{by} {place:g} comes before the first point, {points[0][by]:g}")
    for before, after in pairwise(points):
        if place <= after[by]:
            share = (place - before[by]) / (after[by] - before[by])
            return {key: before[key] + share * (after[key] - before[key]) for key in after}
    return points[-1]


def whole_road(points: Sequence[Point], before: Sequence[Point] | None, half: float) -> list[Point]:
    """Points of a run that went on from the snapshot at `half` images of another one.

    Images and seconds of both count. `before` None: it started from the teacher.
    """
    if before is None:
        return list(points)
    first = [point for point in before if point["images"] <= half]
    images, seconds = first[-1]["images"], first[-1]["seconds"]
    return first + [
        {**point, "images": point["images"] + images, "seconds": point["seconds"] + seconds}
        for point in points
    ]


def measured(runs: Iterable[Run], images: int, rows: Iterable[Row] = ROWS) -> list[Measured]:
    """By row, in their order; rows without a run are left out, and seeds of a row that goes on
    from another one without theirs there."""
    found = {(run["row"], run["seed"]): run for run in runs}
    together = []
    for row in rows:
        roads, peaks = [], []
        for (name, seed), run in found.items():
            before = None if row.after is None else found.get((row.after, seed))
            if name != row.name or (row.after is not None and before is None):
                continue
            earlier = None if before is None else before["points"]
            roads.append(whole_road(run["points"], earlier, images / 2))
            earlier_peak = 0.0 if before is None else before["peak_megabytes"]
            peaks.append(max(run["peak_megabytes"], earlier_peak))
        if roads:
            together.append(Measured(row, roads, peaks))
    return together


def equal_seconds(rows: Iterable[Measured]) -> float:
    """Time at which rows are compared: that in which the fastest one has seen all its images."""
    return min(statistics.mean(row.at_the_end("seconds")) for row in rows)


# --- the table ----------------------------------------------------------------------------


def spread(values: Sequence[float], form: str) -> str:
    """Mean and, of several values, standard deviation."""
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):{form}}"


def table(rows: Sequence[Measured], references: Mapping[str, Point] | None = None) -> str:
    """Markdown, a line for each row.

    Args:
        references: what was not trained here: its name and its figures.
    """
    seconds = equal_seconds(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, figures in (references or {}).items():
        shares = " | ".join(f"{figures[key]:.3f}" for key in SHARES)
        lines.append(f"| *{name}* | {figures['distance']:.3f} | - | - | {shares} | - | - |")
    for row in rows:
        rates = [1000 * road[-1]["seconds"] / road[-1]["images"] for road in row.roads]
        cells = [
            row.row.name.removesuffix(f", {PIXELS}"),
            spread(row.at_the_end("distance"), ".3f"),
            spread(row.at_time("distance", seconds), ".3f"),
            f"{statistics.mean(row.at_time('images', seconds)):,.0f}",
            *(f"{statistics.mean(row.at_the_end(key)):.3f}" for key in SHARES),
            f"{statistics.mean(rates):.2f}",
            f"{statistics.mean(row.peak_megabytes):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(results: Mapping[str, Any], figure: str) -> str:
    """Markdown of all that was measured. `figure` is the path of the figure beside the page."""
    parts = []
    for domain, rows in by_domain(results).items():
        seeds = max(len(row.roads) for row in rows)
        told = (
            f"### {TITLES[domain]}\n\n{results['images']:,} images, {seeds} "
            f"seed{'s' * (seeds > 1)}; equal time is {equal_seconds(rows):.0f} s of one core."
        )
        parts += [told, table(rows, results.get("references", {}).get(domain))]
    return "\n\n".join([*parts, f"![Distances of each method]({figure})"])


def by_domain(results: Mapping[str, Any]) -> dict[str, list[Measured]]:
    """Rows that were measured, of latents and of pixels."""
    rows = measured(results["runs"], results["images"])
    domains = {domain: [row for row in rows if row.row.domain == domain] for domain in TITLES}
    return {domain: found for domain, found in domains.items() if found}


def choices(runs: Iterable[Run]) -> str:
    """Last distance of each row by the factor of its learning rates, as Markdown."""
    runs = list(runs)
    rates = sorted({run["rate"] for run in runs})
    last = {(run["row"], run["rate"]): run["points"][-1]["distance"] for run in runs}
    lines = [
        "| row | " + " | ".join(f"x{rate:g}" for rate in rates) + " |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for row in dict.fromkeys(run["row"] for run in runs):
        found = [last.get((row, rate)) for rate in rates]
        cells = ["-" if distance is None else f"{distance:.3f}" for distance in found]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace_between(text: str, new: str) -> str:
    """A page whose part between the two markers is `new`.

    Raises:
        ValueError: it has no such part.
    """
    if not re.search(f"{BEGIN}.*{END}", text, re.DOTALL):
        raise ValueError(f"no markers {BEGIN} and {END} for the table")
    head, tail = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
    return f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"


# --- the figure ---------------------------------------------------------------------------


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Distances at equal images and at equal time: a dot for each method, a line for its seeds."""
    domains = by_domain(results)
    heights = [len(rows) + 1 for rows in domains.values()]
    figure, grid = plt.subplots(
        len(domains),
        2,
        figsize=(9, 0.27 * sum(heights) + 0.9),
        gridspec_kw={"height_ratios": heights},
        sharex="row",
        squeeze=False,
    )
    for axes, (domain, rows) in zip(grid, domains.items()):
        seconds = equal_seconds(rows)

        def at_time(row: Measured, seconds: float = seconds) -> list[float]:
            return row.at_time("distance", seconds)

        images = f"{TITLES[domain]}, {results['images']:,} images"
        _dots(axes[0], rows, lambda row: row.at_the_end("distance"), images)
        _dots(axes[1], rows, at_time, f"{TITLES[domain]}, {seconds:.0f} s of one core")
        for name, found in results.get("references", {}).get(domain, {}).items():
            for axis in axes:
                axis.axvline(found["distance"], **LINES[name], lw=1, label=name)
        names = [row.row.name.removesuffix(f", {PIXELS}") for row in rows]
        axes[0].set_yticks(range(len(rows)), names)
        axes[1].set_yticks(range(len(rows)), [])
    for axis in grid[-1]:
        axis.set_xlabel("Fréchet distance (8x8 grey)")
    lines, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncol=max(1, len(labels)), fontsize=8)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _dots(
    axis: Any, rows: Sequence[Measured], values: Callable[[Measured], list[float]], title: str
) -> None:
    for place, row in enumerate(rows):
        seeds = values(row)
        axis.plot([min(seeds), max(seeds)], [place, place], color="C0", lw=1.5)
        axis.plot(seeds, [place] * len(seeds), "|", color="C0", ms=6)
        axis.plot(statistics.mean(seeds), place, "o", color="black", ms=4.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
