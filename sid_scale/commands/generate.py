"""Makes images with a distilled generator: every class with every seed, a PNG each.

    sid-scale generate --generator G --classes 88,0-9 --seeds 0-63 --out images --grid

Under `deepspeed --module sid_scale generate ...` or `torchrun -m sid_scale generate ...` each rank
does its share. Interrupted and started again, it makes only what is missing. On a CPU the same
seed gives the same image, whatever is made beside it.
"""

import argparse

from sid_scale.commands.arguments import add_sampling, check_least, network, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generator",
        type=network,
        required=True,
        metavar="DIR|NAME",
        help="the generator's folder, or its name on the hub: user/repo or user/repo@revision",
    )
    parser.add_argument(
        "--classes",
        metavar="LIST",
        help="numbers, ranges (0-9) and, where the generator's folder has a classes.txt, names; "
        "separated by commas; none for an unconditional generator",
    )
    parser.add_argument(
        "--seeds", required=True, metavar="LIST", help="numbers and ranges, such as 0-63"
    )
    parser.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="DIR",
        help="folder for the images; of one generator, number of steps and dtype",
    )
    add_sampling(parser)
    parser.add_argument(
        "--grid", action="store_true", help="write grid.png: a row a class, a column a seed"
    )
    parser.add_argument(
        "--npz",
        action="store_true",
        help="write images.npz: arr_0 (images, N,H,W,3, as ADM's evaluator wants), classes, seeds",
    )


def run(options: argparse.Namespace) -> int:
    check_least(options, steps=1, batch_size=1)
    from sid_scale.generators.generate import generate

    return generate(options)
