"""Makes two sheets of a generator's images: classes by seeds, and a way from seed to seed.

    sid-scale grid runs/demo/generator --out sheets

`class-by-seed.png` has a row for each class and a column for each seed; `interpolation.png` goes
from the first seed to the second, in a row for each class. (Of a generator that knows no classes:
in a row for each two neighbouring seeds.) Noise is interpolated spherically. `sid-scale generate`
makes the images themselves, and many of them.
"""

import argparse
from pathlib import Path

from sid_scale.commands.arguments import add_sampling, check_least, network, path
from sid_scale.errors import UsageError

SEEDS, FRAMES = "0-7", 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generator",
        type=network,
        metavar="GENERATOR",
        help="the generator's folder, or its name on the hub: user/repo or user/repo@revision",
    )
    parser.add_argument(
        "--out", type=path, default=Path("sheets"), metavar="DIR", help="folder (default: sheets)"
    )
    parser.add_argument(
        "--classes",
        metavar="LIST",
        help="numbers, ranges (0-9) and, where the generator's folder has a classes.txt, names; "
        "separated by commas (default: 10, spread over all)",
    )
    parser.add_argument(
        "--seeds", default=SEEDS, metavar="LIST", help=f"numbers and ranges (default: {SEEDS})"
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=FRAMES,
        metavar="N",
        help=f"images from one seed to the other, both among them (default: {FRAMES})",
    )
    add_sampling(parser)


def run(options: argparse.Namespace) -> int:
    check_least(options, frames=2, steps=1, batch_size=1)
    if options.out.suffix.lower() == ".png":
        raise UsageError(f"--out {options.out}: expected a folder, for two sheets")
    from sid_scale.generators.sheets import make_sheets
    from sid_scale.hub.folders import fill_options

    fill_options(options)
    for sheet in make_sheets(options):
        print(sheet)
    return 0
