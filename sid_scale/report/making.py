"""Runs read, their generators looked at, the page written."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from sid_scale.atomic import atomic_write
from sid_scale.devices import own_device
from sid_scale.errors import SidScaleError
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.hub.folders import local_folder
from sid_scale.report.measurements import TEACHER, Measurement, read_evaluation
from sid_scale.report.neighbours import find_neighbours
from sid_scale.report.page import Look, render
from sid_scale.report.read import ReportError, RunFolder, read_runs


def write_report(options: argparse.Namespace) -> None:
    """Reads the runs, looks at their generators, and writes the page.

    Raises:
        SidScaleError: a folder is no run, a file that was named cannot be used, or the page not
            be written.
    """
    if options.samples < 0 or options.search < 1:
        raise ReportError("--samples is to be at least 0 and --search at least 1")
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise ReportError(f"--out {options.out}: to be a file in a folder that is there")
    if options.generator is not None and len(options.runs) > 1:
        raise ReportError("--generator is one run's: name one RUN_DIR")
    runs, also = _assigned(
        read_runs(options.runs), [read_evaluation(path) for path in options.metrics]
    )
    looks = {run.name: inspect(run, options) for run in runs}
    page = render(runs, looks, also)
    try:
        with atomic_write(options.out) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{options.out} cannot be written: {error}") from error


def inspect(run: RunFolder, options: argparse.Namespace) -> Look:
    """Samples of a run's generator and their real neighbours, or why there are none."""
    folder = options.generator or run.generator
    data = options.data or str(run.config.get("data") or "")
    if options.samples == 0:
        return Look(reason="No samples are compared (--samples 0).")
    if folder is None:
        return Look(reason="The run has written no generator yet.")
    if not data:
        return Look(reason="The run names no data; --data names a folder of shards.")
    # What a run folder says is no reason to open an address, or to start a command.
    if options.data is None and not Path(data).is_dir():
        return Look(reason=f"The run's data is not here ({data}); --data says where it is.")
    print(f"{run.name}: looking for real images near samples of {folder}", file=sys.stderr)
    try:
        folder = local_folder(folder)
        generator = OneStepGenerator.from_pretrained(folder, vae=options.vae)
        generator.to(own_device())
        findings = find_neighbours(generator, data, shown=options.samples, limit=options.search)
    except SidScaleError as error:
        return Look(reason=f"No samples are compared: {error}")
    return Look(findings, generator=folder, data=data)


def _assigned(
    runs: Sequence[RunFolder], evaluations: Sequence[Measurement]
) -> tuple[list[RunFolder], list[Measurement]]:
    """Runs with the evaluations that are theirs, teachers' with all, and those of no run."""
    theirs: dict[str, list[Measurement]] = {run.name: [] for run in runs}
    nobodys = []
    for evaluation in evaluations:
        if evaluation.network.kind == TEACHER:
            owners = list(runs)
        else:
            path = Path(evaluation.network.path or "/").resolve()
            owners = [run for run in runs if path.is_relative_to(run.folder.resolve())]
        for run in owners:
            theirs[run.name].append(evaluation)
        if not owners:
            nobodys.append(evaluation)
    return [
        dataclasses.replace(run, evaluations=(*run.evaluations, *theirs[run.name])) for run in runs
    ], nobodys
