"""Averages of several widths, reconstructed and measured one after another."""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sid_scale.atomic import atomic_write
from sid_scale.distill.phema import (
    Blend,
    check_files,
    complete,
    open_snapshots,
    plan_blend,
    reconstruct,
)
from sid_scale.errors import SidScaleError
from sid_scale.evaluate.features import HIGHER_IS_BETTER
from sid_scale.evaluate.job import open_yardsticks, run_evaluation
from sid_scale.evaluate.offline import generator_job
from sid_scale.evaluate.results import METRICS_FILE
from sid_scale.ranks import Ranks, on_first_rank
from sid_scale.zero.power_ema import width_name
from sid_scale.zero.snapshots import EMA_SNAPSHOTS

SWEEP = "sweep.json"


class SweepError(SidScaleError):
    """A sweep whose results cannot be written; the message says why."""


def sweep_widths(options: argparse.Namespace, ranks: Ranks) -> None:
    """Measures `options.widths` of a run's average; the best becomes `options.out`. Collective.

    Leaves RUN/evaluation/phema/IMAGES/WIDTH/metrics.json, and all of them in one sweep.json beside.

    Raises:
        SidScaleError: something given cannot be used.
    """
    run: Path = options.run
    snapshots = on_first_rank(lambda: open_snapshots(run))
    blends = [plan_blend(snapshots, width, options.images) for width in options.widths]
    open_yardsticks(options, ranks)  # what is missing is told before hours of reading
    on_first_rank(lambda: check_files(snapshots))
    folder = run / "evaluation" / "phema" / f"{blends[0].images_seen:012d}"
    measured = {}
    for blend in blends:
        if ranks.is_first:
            print(blend.summary)
            if blend.warning:
                print(f"warning: {blend.warning}")
        _measure(blend, folder, options, ranks)
    if not ranks.is_first:
        return
    for blend in blends:
        name = width_name(blend.relative_width)
        measured[name] = json.loads((folder / name / METRICS_FILE).read_text())
    best = best_width(measured, options.metrics[0])
    _write(folder / SWEEP, measured, options, best)
    [chosen] = [blend for blend in blends if width_name(blend.relative_width) == best]
    reconstruct(chosen, options.out, options.start)
    for message in complete(options.out, run):
        print(message)
    print(f"{options.metrics[0]} is best at width {chosen.relative_width:g}: {options.out}")


def _measure(blend: Blend, folder: Path, options: argparse.Namespace, ranks: Ranks) -> None:
    """Writes metrics.json of one width; its weights are there only meanwhile. Collective."""
    name = width_name(blend.relative_width)
    weights = folder / f".{name}.generator"
    try:
        on_first_rank(lambda: reconstruct(blend, weights, options.start))
        job = generator_job(weights, None, folder / name, options, ranks)
        network = {**job.network, "path": str(options.run / EMA_SNAPSHOTS)}
        run_evaluation(replace(job, network=network), options, ranks)
    finally:
        if ranks.is_first:
            shutil.rmtree(weights, ignore_errors=True)


def best_width(measured: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """The name of the width at which a metric is best."""
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(measured, key=lambda name: measured[name][metric])


def _write(
    path: Path, measured: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, best: str
) -> None:
    widths = {
        name: {metric: figures[metric] for metric in options.metrics}
        for name, figures in measured.items()
    }
    asked = {"num": options.num, "first_seed": options.first_seed, "repeats": options.repeats}
    content = {**asked, "best_by": options.metrics[0], "best": float(best), "widths": widths}
    try:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise SweepError(f"{path} cannot be written: {error}") from error
