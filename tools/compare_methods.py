"""Compares the methods on the digits: `python tools/compare_methods.py`.

Trains every row of compare_rows.py with each seed on one thread, two runs at once, and writes the
results, the table and the figure to docs/ (methods.json, the part of methods.md between its
markers, methods.png). Stopped, it goes on from the runs that are done when it is started again.

    --table     table and figure from the results that are there
    --choose    how each row takes to other learning rates, on the other half of the real digits
    --short     a few rows and images, for CI

Every row trains on the same number of images with constant rates, so that the average of its
weights may be judged on the way: what a row has reached after a given time is read off between two
of its snapshots, on a straight line.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compare_job import (
    EVEN,
    NOISE_SEED,
    ODD,
    Job,
    guide_folder,
    holds,
    references_file,
    result_file,
    shards_folder,
)
from compare_rows import CHOSEN, GUIDE, LATENTS, PIXELS, ROWS, Row
from compare_table import BEGIN, END, choices, draw, replace_between, section
from compare_workers import run_all, tool

from sid_scale.atomic import atomic_write
from sid_scale.commands.arguments import positive
from sid_scale.errors import SidScaleError, UsageError

TOOLS = Path(__file__).parent
PAGE, RESULTS, FIGURE = "methods.md", "methods.json", "methods.png"

IMAGES, POINTS = 6144, 6
BATCH = 64  # of the presets
SEEDS = (101, 102, 103)  # reported; no setting was chosen with them
CHOOSING_IMAGES, CHOOSING_SEED, CHOOSING_NOISE_SEED = 3072, 1, 0
CHOOSING_RATES = (1.0, 2.0, 4.0)
SHORT = ("SiD", "SiD2A")
SHORT_IMAGES = 256
SHORT_POINTS = 2  # also of choosing, where the last one decides


def main() -> int:
    """Runs what is asked for; returns the exit status."""
    options = parse_options()
    try:
        if not options.table:
            compare(options)
        if not options.choose:
            write_page(options.docs)
    except (SidScaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, SidScaleError) else 1
    return 0


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--table", action="store_true", help="train nothing")
    length.add_argument("--choose", action="store_true", help="compare learning rates")
    length.add_argument("--short", action="store_true", help="a taste, for CI")
    parser.add_argument("--images", type=positive, help=f"of each run; {IMAGES}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows instead of all")
    parser.add_argument("--at-once", type=positive, default=2, help="runs at once; 2")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/compare"), help="folder of the runs"
    )
    parser.add_argument("--docs", type=Path, default=TOOLS.parent / "docs", help="of the page")
    options = parser.parse_args(arguments)
    if options.short:
        options.rows, options.seeds = list(SHORT), [SEEDS[0]]
    elif options.choose:
        options.rows = options.rows or list(CHOSEN)
    options.images = options.images or (
        SHORT_IMAGES if options.short else CHOOSING_IMAGES if options.choose else IMAGES
    )
    options.points = POINTS if not (options.short or options.choose) else SHORT_POINTS
    return options


def compare(options: argparse.Namespace) -> None:
    """Runs what is not done yet, and writes the results, or tells those of choosing.

    Raises:
        UsageError: rows or images that cannot be, or that are not those of the page.
        RunError: a run failed; results are written without it.
    """
    if options.images % (BATCH * options.points):
        raise UsageError(f"--images {options.images} is no multiple of {BATCH * options.points}")
    before = written_before(options.docs).get("images", options.images)
    if not options.choose and before != options.images:
        raise UsageError(
            f"{options.docs / RESULTS} has runs of {before} images, not {options.images}: give "
            "another folder with --docs"
        )
    rows = chosen_rows(options.rows)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    list_jobs = choosing_jobs if options.choose else reported_jobs
    prepare(rows, options)
    failed = run_all(list_jobs(rows, options), options.work, options.at_once)
    if options.choose:
        files = [result_file(options.work, job) for job in list_jobs(rows, options)]
        print(choices(json.loads(file.read_text()) for file in files if file.is_file()))
    else:
        write_results(options, results_of(list_jobs(ROWS, options), options))
    if failed:
        logs = ", ".join(str(options.work / f"{job.name}.log") for job in failed)
        raise RunError(f"{len(failed)} runs failed, see {logs}; start again to go on")


class RunError(SidScaleError):
    """Runs failed; the message names their logs."""


# --- what is run --------------------------------------------------------------------------


def chosen_rows(names: Sequence[str] | None) -> list[Row]:
    """Rows of these names, and those that they go on from. None: all.

    Raises:
        UsageError: there is no such row.
    """
    known = {row.name: row for row in ROWS}
    for name in names or ():
        if name not in known:
            raise UsageError(f"--rows: no row {name!r}; there are: {'; '.join(known)}")
    wanted = set(names or known)
    wanted |= {after for name in wanted if (after := known[name].after) is not None}
    return [row for row in ROWS if row.name in wanted]


def reported_jobs(rows: Sequence[Row], options: argparse.Namespace) -> list[Job]:
    """Every row with every seed, seed by seed."""
    images, points = options.images, options.points
    return [
        Job(row.name, seed, images, points, ODD, NOISE_SEED)
        for seed in options.seeds
        for row in rows
    ]


def choosing_jobs(rows: Sequence[Row], options: argparse.Namespace) -> list[Job]:
    """Every row with every factor of its learning rates."""
    images, points = options.images, options.points
    return [
        Job(row.name, CHOOSING_SEED, images, points, EVEN, CHOOSING_NOISE_SEED, rate)
        for rate in CHOOSING_RATES
        for row in rows
    ]


def prepare(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Makes what `rows` need and what is told beside them, if it is not there.

    Raises:
        RunError: that failed.
    """
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    needed = {}
    for row in rows:
        domain = row.domain
        needed[f"shards:{domain}"] = shards_folder(work, domain) / "index.json"
        if any(GUIDE in text for text in row.overrides):
            needed[f"guide:{domain}"] = guide_folder(work, domain)
        if not (options.short or options.choose):
            needed[f"references:{domain}"] = references_file(work, domain)
    missing = [what for what, path in needed.items() if not path.exists()]
    if missing and tool(work, "prepare.log", "compare_prepare.py", *missing).wait():
        raise RunError(f"nothing to train on: see {work / 'prepare.log'}")


# --- what is written ----------------------------------------------------------------------


def results_of(jobs: Iterable[Job], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of `jobs` in the folder of runs, and those written before that still hold."""
    runs = {run["name"]: run for run in written_before(options.docs).get("runs", []) if holds(run)}
    for job in jobs:
        if (file := result_file(options.work, job)).is_file():
            runs[job.name] = json.loads(file.read_text())
    places = {row.name: place for place, row in enumerate(ROWS)}
    return sorted(runs.values(), key=lambda run: (places[run["row"]], run["seed"]))


def written_before(docs: Path) -> dict[str, Any]:
    """Results that are in the page's folder already; none: an empty one."""
    file = docs / RESULTS
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def write_results(options: argparse.Namespace, runs: Sequence[dict[str, Any]]) -> None:
    """One line a run."""
    references = written_before(options.docs).get("references", {})
    for domain in (LATENTS, PIXELS):
        if (file := references_file(options.work, domain)).is_file():
            references[domain] = json.loads(file.read_text())
    head = json.dumps({"images": options.images, "references": references})[:-1]
    lines = ",\n".join(json.dumps(run) for run in runs)
    options.docs.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.docs / RESULTS) as partial:
        partial.write_text(f'{head}, "runs": [\n{lines}\n]}}\n')


def write_page(docs: Path) -> None:
    """Table and figure anew, from the results.

    Raises:
        UsageError: no results, or no place for the table in the page.
    """
    try:
        results = json.loads((docs / RESULTS).read_text())
        page = (docs / PAGE).read_text() if (docs / PAGE).is_file() else f"{BEGIN}{END}\n"
        page = replace_between(page, section(results, FIGURE))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{docs / PAGE}: {error}") from error
    draw(docs / FIGURE, results)
    with atomic_write(docs / PAGE) as partial:
        partial.write_text(page)


if __name__ == "__main__":
    sys.exit(main())
