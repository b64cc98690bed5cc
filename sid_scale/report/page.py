"""The page: everything put into `page.html`, which escapes all that it is given.

The page may fetch nothing and run nothing, and says so itself (Content-Security-Policy).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sid_scale.class_lists import ListError, read_class_names
from sid_scale.report.classes import class_rows
from sid_scale.report.curves import training_evaluations
from sid_scale.report.measurements import Measurement
from sid_scale.report.neighbours import Findings
from sid_scale.report.pictures import Picture, chosen_grids, grid_picture, thumbnail
from sid_scale.report.quantities import (
    Plot,
    loss_plots,
    metric_plots,
    other_plots,
    width_plots,
)
from sid_scale.report.read import ReportError, RunFolder
from sid_scale.report.tables import (
    Table,
    comparison_table,
    count,
    differing_settings,
    facts,
    flatten,
    metrics_table,
    number,
    sentence,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Look:
    """What looking at a run's generator has brought: findings, or the reason why there are none."""

    findings: Findings | None = None
    reason: str = ""
    generator: Path | None = None
    data: str = ""


@dataclass(frozen=True)
class GridView:
    """A grid of samples on the page."""

    images_seen: str
    picture: Picture


@dataclass(frozen=True)
class NearView:
    """An image and what stands below it."""

    picture: Picture
    text: str


@dataclass(frozen=True)
class RunView:
    """A run on the page."""

    anchor: str
    name: str
    folder: str
    sentence: str
    facts: list[tuple[str, str]]
    notices: list[str]
    metrics: Table
    metric_plots: list[Plot]
    width_plots: list[Plot]
    loss_plots: list[Plot]
    other_plots: list[Plot]
    grids: list[GridView]
    grids_in_all: int
    grids_reduced: bool
    look: Look
    neighbours: list[list[NearView]]  # a sample, then the real images
    classes: Table | None
    environment: Table
    config_text: str

    @property
    def plots(self) -> list[Plot]:
        """Those whose axis a reader may choose."""
        return [*self.metric_plots, *self.loss_plots, *self.other_plots]


def render(
    runs: Sequence[RunFolder], looks: Mapping[str, Look], also: Sequence[Measurement] = ()
) -> str:
    """The page of runs.

    Args:
        looks: by the runs' names.
        also: evaluations that belong to none of the runs.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "number": number}
    several = len(runs) > 1
    views = [_run_view(run, f"run{i}", looks[run.name]) for i, run in enumerate(runs)]
    common_metrics = metric_plots(runs, "all") if several else []
    common_losses = loss_plots(runs, "all") if several else []
    plots = [*common_metrics, *common_losses, *(plot for view in views for plot in view.plots)]
    return environment.get_template("page.html").render(
        style=Markup((HERE / "style.css").read_text()),
        runs=views,
        has_choice=any(plot.has_choice for plot in plots),
        comparison=comparison_table(runs) if several else None,
        differences=differing_settings(runs) if several else None,
        common_metrics=common_metrics,
        common_losses=common_losses,
        also=metrics_table(also) if also else None,
    )


def _run_view(run: RunFolder, anchor: str, look: Look) -> RunView:
    notices = list(run.notices)
    grids = []
    for grid in chosen_grids(run.grids):
        try:
            grids.append(GridView(count(grid.images_seen), grid_picture(grid.path)))
        except ReportError as error:
            notices.append(f"{error}.")
    names = _class_names(look, notices)
    return RunView(
        anchor,
        run.name,
        str(run.folder),
        sentence(run),
        facts(run),
        notices,
        metrics_table([*run.evaluations, *training_evaluations(run)]),
        metric_plots([run], anchor),
        width_plots(run, anchor),
        loss_plots([run], anchor),
        other_plots(run, anchor),
        grids,
        len(run.grids),
        any(grid.picture.reduced for grid in grids),
        look,
        _neighbour_views(look.findings, names),
        _class_table(look.findings, names),
        Table(("", ""), tuple(flatten(run.environment).items())),
        run.config_text,
    )


def _class_names(look: Look, notices: list[str]) -> list[str]:
    if look.findings is None or look.generator is None or not look.findings.num_classes:
        return []
    numbers = [str(label) for label in range(look.findings.num_classes)]
    try:
        names = read_class_names(look.generator, len(numbers))
    except ListError as error:
        notices.append(f"{error}.")
        return numbers
    return [f"{label} {name}" for label, name in zip(numbers, names)] if names else numbers


def _neighbour_views(findings: Findings | None, names: Sequence[str]) -> list[list[NearView]]:
    if findings is None:
        return []
    return [
        [
            NearView(thumbnail(sample.image), f"{_class(names, sample.label)}seed {sample.seed}"),
            *(
                NearView(
                    thumbnail(near.image),
                    f"{_class(names, near.label)}distance {near.distance:.1f}",
                )
                for near in sample.neighbours
            ),
        ]
        for sample in findings.samples
    ]


def _class(names: Sequence[str], label: int) -> str:
    """The beginning of a text below an image; empty of images without classes."""
    return f"class {names[label]} · " if names else ""


def _class_table(findings: Findings | None, names: Sequence[str]) -> Table | None:
    if findings is None or findings.generated is None or findings.real is None:
        return None
    rows = class_rows(findings.generated, findings.real, len(names))
    return Table(
        (
            "Class",
            "Real images",
            "Samples",
            "Own class nearest, samples",
            "Own class nearest, real",
            "Distance to nearest, samples",
            "Distance to nearest, real",
            "Variety",
        ),
        tuple(
            (
                names[row.label],
                count(row.real),
                count(row.generated),
                _share(row.own_class),
                _share(row.own_class_real),
                number(row.nearest),
                number(row.nearest_real),
                number(row.variety),
            )
            for row in rows
        ),
    )


def _share(value: float) -> str:
    return f"{value:.0%}" if value == value else number(None)
