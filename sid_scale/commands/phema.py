"""An average of any width, after the run: `sid-scale phema RUN --width 0.07 OUT`.

A run with `ema.relative_widths` leaves snapshots of several power-function averages. From these
an average of another relative width (its standard deviation as a share of the training, EDM2's
sigma_rel) is reconstructed, and written as a generator's folder. Runs on a login node: no GPU, no
ranks, memory for a few times the largest tensor.

    sid-scale phema RUN --sweep 0.03:0.15 OUT --metrics fid --reference R.npz ...

measures several widths, as `sid-scale evaluate run` does, on one process or on ranks. The metrics
go to RUN/evaluation/phema, where `sid-scale report RUN` finds them and shows them over the width.
The best by the first metric becomes OUT. It was chosen by these seeds: measure it with others.
"""

import argparse
import re

from sid_scale.commands.arguments import above_zero, check_least, network, path, positive
from sid_scale.commands.evaluate import LEAST, add_measurement
from sid_scale.errors import UsageError

POINTS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="the run's folder")
    parser.add_argument("out", type=path, metavar="OUT", help="generator folder to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--width", type=above_zero, metavar="W", help="a relative width")
    which.add_argument(
        "--sweep", metavar="A:B", help="measure widths from A to B, and take the best"
    )
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="reconstruct at N images seen, best the moment of a snapshot (default: the last one)",
    )
    parser.add_argument(
        "--start", type=network, action="append", default=[], metavar="FOLDER",
        help="network folder that the run started from, or its name on the hub, if it is elsewhere "
        "by now; of runs that leave weights frozen",
    )  # fmt: skip
    sweep = parser.add_argument_group("with --sweep")
    sweep.add_argument(
        "--points", type=int, metavar="K", help=f"widths that are measured (default: {POINTS})"
    )
    add_measurement(sweep, "--num", "--samples")


def run(options: argparse.Namespace) -> int:
    if options.sweep is None:
        if options.points is not None:
            raise UsageError("--points goes with --sweep")
        return _reconstruct(options)
    check_least(options, **LEAST, points=2, num=2)
    options.widths = parse_sweep(options.sweep, options.points or POINTS)
    from sid_scale.distill.phema import check_new
    from sid_scale.evaluate.offline import on_ranks
    from sid_scale.evaluate.sweep import sweep_widths

    check_new(options.out)
    return on_ranks(sweep_widths, options)


def _reconstruct(options: argparse.Namespace) -> int:
    from sid_scale.distill.phema import (
        check_files,
        check_new,
        complete,
        open_snapshots,
        plan_blend,
        reconstruct,
    )
    from sid_scale.hub.folders import fill_options

    check_new(options.out)
    fill_options(options)
    snapshots = open_snapshots(options.run)
    blend = plan_blend(snapshots, options.width, options.images)
    if blend.warning:
        print(f"warning: {blend.warning}")
    check_files(snapshots)
    reconstruct(blend, options.out, options.start)
    for message in complete(options.out, options.run):
        print(message)
    print(f"{options.out}: {blend.summary}")
    return 0


def parse_sweep(text: str, points: int) -> list[float]:
    """`0.03:0.15` -> so many widths, at equal distances, to three decimals.

    Raises:
        UsageError: it is no such range, or too narrow for so many points.
    """
    match = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", text)
    low, high = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
    if not 0 < low < high < 12**-0.5:
        raise UsageError(f"--sweep {text}: give two rising widths below 0.289, as 0.03:0.15")
    step = (high - low) / (points - 1)
    widths = [round(low + step * number, 3) for number in range(points)]
    if len(set(widths)) < points:
        raise UsageError(f"--sweep {text}: {points} widths in it are less than 0.001 apart")
    return widths
