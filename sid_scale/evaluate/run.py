"""`python -m sid_scale.evaluate run --generator DIR --reference FILE --metrics fid,... --out DIR`:
a generator's figures as `metrics.json`."""

import argparse
from pathlib import Path

from sid_scale.evaluate.arguments import add_shared_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = __doc__
    parser.add_argument(
        "--generator", type=Path, required=True, metavar="DIR", help="the generator's folder"
    )
    parser.add_argument(
        "--steps", type=int, metavar="K", help="network evaluations an image (default: its own)"
    )
    add_shared_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Evaluates; returns the exit status."""
    from sid_scale.evaluate.offline import evaluate_generator, on_ranks  # takes seconds

    return on_ranks(evaluate_generator, options)
