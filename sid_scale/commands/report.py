"""Runs as one page that needs nothing else: `sid-scale report RUN_DIR...`.

The page is one HTML file with all pictures and plots inside; it opens from a disk or an e-mail,
without a network. Of a run that is still going on it shows what is there.
"""

import argparse
from pathlib import Path

from sid_scale.commands.arguments import network, path

SAMPLES, SEARCH = 10, 50_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="a run's folder")
    parser.add_argument(
        "--out", type=path, default=Path("report.html"), metavar="FILE", help="default report.html"
    )
    parser.add_argument(
        "--metrics",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="metrics.json of other evaluations; a teacher's goes into every run's plots",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help=f"samples that are compared with real images (default {SAMPLES}; 0: none)",
    )
    parser.add_argument(
        "--search",
        type=int,
        default=SEARCH,
        metavar="N",
        help=f"real images among which neighbours are looked for (default the first {SEARCH:,})",
    )
    parser.add_argument(
        "--generator",
        type=network,
        metavar="DIR|NAME",
        help="of one run, instead of its generator/",
    )
    parser.add_argument(
        "--vae",
        type=network,
        metavar="DIR|NAME",
        help="the VAE, if the generator's folder has none",
    )
    parser.add_argument("--data", metavar="DIR", help="shards, instead of those of the run's data")


def run(options: argparse.Namespace) -> int:
    from sid_scale.report.making import write_report

    write_report(options)
    print(options.out)
    return 0
