"""Arguments that several commands share."""

import argparse
import math
import re
from pathlib import Path

from sid_scale.dtypes import COMPUTE
from sid_scale.errors import UsageError
from sid_scale.paths import expand


def location(text: str) -> str:
    """A path, a URL or a name, with the home folder and environment variables put in."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def path(text: str) -> Path:
    """A path, with the home folder and environment variables put in."""
    return Path(location(text))


def network(text: str) -> str:
    """A network's folder, or its name on the hub: a folder is written ./user/repo if need be."""
    return location(text)


network.__name__ = "network folder or name on the hub"


def encoder(text: str) -> tuple[str, Path]:
    """`NAME=FILE`, an encoder's name and the file of its weights."""
    name, _, file = text.partition("=")
    if not (name and file):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FILE")
    return name, path(file)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


positive.__name__ = "positive number"  # as argparse calls it in errors


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


above_zero.__name__ = "number above 0"


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Makes sure that numbers are not too small; those that are not given (None) are fine.

    Raises:
        UsageError: names the first that is.
    """
    for name, smallest in least.items():
        value = getattr(options, name, None)
        if value is not None and value < smallest:
            raise UsageError(f"--{name.replace('_', '-')} {value} is below {smallest}")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes do the work."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: as many as there are cores)"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a generator makes images."""
    parser.add_argument("--steps", type=int, metavar="K", help="NFE of an image (default: its own)")
    parser.add_argument(
        "--dtype", choices=COMPUTE, default="float32", help="what the network computes in"
    )
    add_vae(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images at once on a GPU"
    )


def add_vae(parser: argparse._ActionsContainer) -> None:
    """Which VAE makes images of latents."""
    parser.add_argument(
        "--vae",
        type=network,
        metavar="DIR|NAME",
        help="the VAE's folder, or its name on the hub, if config.json names another",
    )


def byte_count(text: str) -> int:
    """`"512MB"` -> 512,000,000: a number of B, kB, MB, GB, or of 1024-fold KiB, MiB, GiB.

    Raises:
        ValueError: it is no such text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:(|[kKMG])B?|([KMG])iB)", text)
    if match is None or (size := int(float(match[1]) * _unit(match[2], match[3]))) < 1:
        raise ValueError(f"{text!r} is no size such as 512MB")
    return size


def _unit(decimal: str | None, binary: str | None) -> int:
    if binary:
        return 1024 ** (1 + "KMG".index(binary))
    return 1000 ** (" KMG".index(decimal.upper()) if decimal else 0)
