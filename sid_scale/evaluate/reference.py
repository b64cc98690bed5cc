"""`python -m sid_scale.evaluate reference --data DIR --metrics LIST --out FILE`: statistics of
real images, from latent shards or from a folder of images, for `--reference` of `run`.

Shards hold latents: for metrics of pixels they are decoded, so what the VAE loses counts on neither
side. A folder of images is taken as it is, or cropped; all must have the size of the network's.
"""

import argparse
from pathlib import Path

from sid_scale.evaluate.arguments import add_detector_arguments, add_vae_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = __doc__
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="shards, or a folder of images"
    )
    parser.add_argument(
        "--metrics", required=True, metavar="LIST", help="what it shall serve for; by commas"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="an .npz file")
    parser.add_argument(
        "--num",
        "--images",
        type=int,
        metavar="N",
        help="take N images, spread over the data (default: all); behind a launcher: --images",
    )
    parser.add_argument(
        "--crop",
        type=int,
        metavar="SIZE",
        help="of images in a folder take the middle square, at this size (ADM's crop)",
    )
    parser.add_argument(
        "--network",
        type=Path,
        metavar="DIR",
        help="a network folder whose codec makes latents of images (for fd_latents of a folder of "
        "images)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_detector_arguments(parser)
    add_vae_arguments(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher


def main(options: argparse.Namespace) -> int:
    """Computes; returns the exit status."""
    from sid_scale.evaluate.offline import on_ranks  # takes seconds
    from sid_scale.evaluate.references.compute import make_reference

    return on_ranks(make_reference, options)
