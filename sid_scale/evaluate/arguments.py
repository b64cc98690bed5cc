"""Command-line options that `run` and `teacher` share."""

import argparse
from pathlib import Path

PRECISIONS = ("float32", "bfloat16", "float16")
PROTOCOL = 50_000  # images that published figures are of


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, on how many samples, where to put it, and how to compute."""
    parser.add_argument(
        "--metrics",
        default="fid",
        metavar="LIST",
        help="of fid, fd_dinov2, is, precision, recall, fd_pixels, fd_latents; separated by commas",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="EDM2's .pkl, EDM's .npz, or what `reference` wrote; of several, each metric takes "
        "the first that has it",
    )
    # Launchers take `--num` for the beginning of options of their own.
    parser.add_argument(
        "--num",
        "--images",
        type=int,
        default=PROTOCOL,
        metavar="N",
        help="images (default: 50000); behind `deepspeed` or `torchrun` write --images",
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="seeds are S to S + N - 1"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="R",
        help="measure R times, each time with the next N seeds: mean, minimum, deviation",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for metrics.json"
    )
    parser.add_argument(
        "--save-features", action="store_true", help="write features/METRIC.npy (N, D)"
    )
    add_detector_arguments(parser)
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="what the network computes in"
    )
    add_vae_arguments(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="samples at once on a GPU"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the detectors lie."""
    parser.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="inception-2015-12-05.pt, for fid, is, precision and recall",
    )
    parser.add_argument(
        "--dinov2", type=Path, metavar="DIR", help="facebook/dinov2-large, for fd_dinov2"
    )


def add_vae_arguments(parser: argparse.ArgumentParser) -> None:
    """How latents become images."""
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="the VAE's folder, if config.json names another"
    )
    parser.add_argument(
        "--vae-dtype", choices=PRECISIONS, default="float32", help="what the VAE computes in"
    )
    parser.add_argument(
        "--vae-batch",
        type=int,
        metavar="N",
        help="images that pass through the VAE at once (default: what little memory allows)",
    )


LEAST = {"num": 2, "repeats": 1, "batch_size": 1, "vae_batch": 1, "steps": 1, "crop": 1}


def counts_too_small(options: argparse.Namespace) -> str | None:
    """The first count that is too small, as a complaint; None if there is none."""
    for name, least in LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            why = ": one image has no spread" if (name, value) == ("num", 1) else ""
            return f"--{name.replace('_', '-')} {value} is below {least}{why}"
    return None
