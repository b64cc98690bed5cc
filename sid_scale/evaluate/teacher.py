"""`python -m sid_scale.evaluate teacher --teacher DIR --evaluations 63 ... --out DIR`: the table of
`run` for a teacher, sampled with EDM's deterministic sampler, guided or not.

With several numbers of evaluations (`--evaluations 17,35,63`) each has a folder in DIR.
"""

import argparse
from pathlib import Path

from sid_scale.evaluate.arguments import add_shared_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = __doc__
    parser.add_argument(
        "--teacher", type=Path, required=True, metavar="DIR", help="the teacher's folder"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--evaluations",
        metavar="LIST",
        help="network evaluations an image, an odd number; several are separated by commas "
        "(default: 63)",
    )
    length.add_argument(
        "--steps", type=int, metavar="K", help="the sampler's steps instead: 2 K - 1 evaluations"
    )
    parser.add_argument(
        "--guide",
        type=Path,
        metavar="DIR",
        help="a network to be guided by: an unconditional one (classifier-free guidance) or a "
        "lesser one (autoguidance)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="W",
        help="its weight: guide + W (net - guide)",
    )
    add_shared_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Evaluates; returns the exit status."""
    from sid_scale.evaluate.offline import evaluate_teacher, on_ranks  # takes seconds

    return on_ranks(evaluate_teacher, options)
