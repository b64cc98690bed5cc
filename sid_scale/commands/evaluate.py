"""How good are the images? `sid-scale evaluate run|teacher|reference ...`

    run         a generator's folder -> metrics.json
    teacher     the same table for a teacher with EDM's sampler, at any NFE
    reference   statistics of real images, to compare with

Under `deepspeed --module sid_scale evaluate run ...` or `torchrun -m sid_scale evaluate run ...`
each rank does its share.
"""

import argparse

from sid_scale.commands.arguments import add_vae, check_least, encoder, location, network, path
from sid_scale.dtypes import COMPUTE
from sid_scale.errors import UsageError

PROTOCOL = 50_000  # images that published figures are of
LEAST = {"repeats": 1, "batch_size": 1, "vae_batch": 1, "steps": 1, "crop": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="run|teacher|reference")
    for name, add in {
        "run": _add_run,
        "teacher": _add_teacher,
        "reference": _add_reference,
    }.items():
        kind = kinds.add_parser(
            name, description=add.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add(kind)


def run(options: argparse.Namespace) -> int:
    check_least(options, **LEAST)
    if options.num is not None and options.num < 2:
        raise UsageError(f"--num {options.num} is below 2: one image has no spread")
    from sid_scale.evaluate.offline import (
        evaluate_generator,
        evaluate_teacher,
        on_ranks,
        sampler_settings,
    )
    from sid_scale.evaluate.references.compute import make_reference

    if options.kind == "teacher":
        sampler_settings(options)  # what is refused is refused before ranks join
    evaluations = {
        "run": evaluate_generator,
        "teacher": evaluate_teacher,
        "reference": make_reference,
    }
    return on_ranks(evaluations[options.kind], options)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Measures a generator: --generator DIR --reference FILE --metrics fid,... --out DIR."""
    parser.add_argument(
        "--generator",
        type=network,
        required=True,
        metavar="DIR|NAME",
        help="the generator's folder, or its name on the hub: user/repo or user/repo@revision",
    )
    parser.add_argument("--steps", type=int, metavar="K", help="NFE of an image (default: its own)")
    _add_shared(parser)


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    """Measures a teacher, sampled with EDM's samplers, guided or not.

    Without --s-churn the sampler is deterministic. With several NFE (`--evaluations 17,35,63`)
    each has a folder in DIR.
    """
    parser.add_argument(
        "--teacher",
        type=network,
        required=True,
        metavar="DIR|NAME",
        help="the teacher's folder, or its name on the hub",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--evaluations",
        metavar="LIST",
        help="NFE of an image, an odd number; several are separated by commas (default: 63)",
    )
    length.add_argument(
        "--steps", type=int, metavar="K", help="the sampler's steps instead: 2 K - 1 evaluations"
    )
    _add_sampler(parser)
    parser.add_argument(
        "--guide",
        type=network,
        metavar="DIR|NAME",
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
    _add_shared(parser)


def _add_sampler(parser: argparse.ArgumentParser) -> None:
    """Settings of EDM's samplers, by the names of the paper (arXiv 2206.00364, Algorithm 2)."""
    numbers = {
        "--sigma-min": "lowest noise level (default: 0.002)",
        "--sigma-max": "highest noise level (default: 80)",
        "--rho": "how far the levels crowd at the lower end (default: 7)",
        "--s-churn": "fresh noise in the steps, S_churn (default: 0, none: deterministic)",
        "--s-min": "noise is added at levels from S_min (default: 0)",
        "--s-max": "to S_max (default: no limit)",
        "--s-noise": "its standard deviation, S_noise (default: 1)",
    }
    for name, text in numbers.items():
        parser.add_argument(name, type=float, metavar="X", help=text)


def _add_reference(parser: argparse.ArgumentParser) -> None:
    """Computes statistics of real images, for `--reference` of `run`.

    Shards hold latents: for metrics of pixels they are decoded, so what the VAE loses counts on
    neither side. A folder of images is taken as it is, or cropped; all must have the size of the
    network's.
    """
    parser.add_argument(
        "--data", type=path, required=True, metavar="DIR", help="shards, or a folder of images"
    )
    parser.add_argument(
        "--metrics", required=True, metavar="LIST", help="what it shall serve for; by commas"
    )
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="an .npz file")
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
        type=network,
        metavar="DIR|NAME",
        help="a network folder whose codec makes latents of images (for fd_latents of a folder of "
        "images)",
    )
    parser.add_argument(
        "--held-out",
        type=path,
        metavar="DIR",
        help="other real images, such as the validation set: their distance is what fdr divides by",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_detectors(parser)
    _add_vae(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """All that `run` and `teacher` have in common."""
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder for metrics.json"
    )
    # Launchers take `--num` for the beginning of options of their own.
    add_measurement(parser, "--num", "--images")


def add_measurement(parser: argparse._ActionsContainer, *num: str) -> None:
    """What to measure, on how many samples, and how to compute.

    Args:
        num: names of the option for the number of images, the last for use behind a launcher.
    """
    parser.add_argument(
        "--metrics",
        default="fid",
        metavar="LIST",
        help="of fid, kid, mind, is, precision, recall, density, coverage, fdr, and fd_X, kd_X, "
        "mind_X with X dinov2, pixels, latents or an encoder; separated by commas (default: fid)",
    )
    parser.add_argument(
        "--reference",
        type=path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="EDM2's .pkl, EDM's or ADM's .npz, or what `reference` wrote; of several, each metric "
        "takes the first that has it",
    )
    parser.add_argument(
        *num,
        type=int,
        default=PROTOCOL,
        metavar="N",
        help=f"images (default: 50000); behind `deepspeed` or `torchrun` write {num[-1]}",
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="seeds are S to S + N - 1"
    )
    parser.add_argument(
        "--labels",
        type=location,
        default="uniform",
        metavar="LABELS",
        help="classes of the images: uniform (default), shards (as often as there) or a text file "
        "of class numbers",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="R",
        help="measure R times, each time with the next N seeds: mean, minimum, std",
    )
    parser.add_argument(
        "--save-features", action="store_true", help="write features/METRIC.npy (N, D)"
    )
    add_detectors(parser)
    parser.add_argument(
        "--dtype", choices=COMPUTE, default="float32", help="what the network computes in"
    )
    _add_vae(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="samples at once on a GPU"
    )


def add_detectors(parser: argparse._ActionsContainer) -> None:
    """Where the detectors lie."""
    parser.add_argument(
        "--inception",
        type=path,
        metavar="FILE",
        help="inception-2015-12-05.pt, or the weights of pytorch-fid or torch-fidelity "
        "(...-inception-2015-12-05-6726825d.pth); for fid, kid, mind, is, precision, recall, "
        "density and coverage",
    )
    parser.add_argument(
        "--dinov2",
        type=network,
        metavar="DIR|NAME",
        help="facebook/dinov2-large, its folder or its name on the hub, for fd_dinov2 and its like",
    )
    parser.add_argument(
        "--encoder",
        type=encoder,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="a network of timm's, NAME or NAME@SIZE, and its weights (safetensors), or the model "
        "on the hub that has them; for fd_NAME, kd_NAME, mind_NAME and fdr",
    )


def _add_vae(parser: argparse._ActionsContainer) -> None:
    """How latents become images."""
    add_vae(parser)
    parser.add_argument(
        "--vae-dtype", choices=COMPUTE, default="float32", help="what the VAE computes in"
    )
    parser.add_argument(
        "--vae-batch",
        type=int,
        metavar="N",
        help="images that pass through the VAE at once (default: what little memory allows)",
    )
