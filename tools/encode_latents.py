"""Encodes images with a VAE into shards of latents.

    torchrun --nproc_per_node 8 tools/encode_latents.py --source ILSVRC2012/train \\
        --vae sd-vae-ft-mse --out /data/imagenet512 --precision bfloat16

SOURCE is a folder of class folders, as ImageNet's; a zip archive or folder with a dataset.json as
EDM2 writes it; or pixel shards. Images are cropped and resized as ADM does it.

Each process makes shards of its own in a folder that all share: ranks of `torchrun` or `deepspeed`,
parts of a SLURM array (`--part $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`, from 0 on), or both.
They need not run at the same time, nor meet. Whoever is last writes the index. Interrupted and
started again, on any number of processes, it goes on; finished shards are compared with their
checksums and kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from sid_scale.codecs import CodecError, VAECodec, read_codec, stability_vae
from sid_scale.data.prepare.build import Part, ShardBuild
from sid_scale.data.prepare.encode import PRECISIONS, Encoder, Encoding, encode, plan_encoding
from sid_scale.data.prepare.plan import parse_bytes
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import DTYPES
from sid_scale.errors import SidScaleError
from sid_scale.process_pool import usable_cores
from sid_scale.ranks import launched_rank, tell_once


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, metavar="IMAGES", help="see above")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--vae",
        metavar="FOLDER",
        help="diffusers folder of the VAE; without --codec it is taken for the Stability VAE, "
        "whose normalisation EDM2's ImageNet-512 models have",
    )
    parser.add_argument(
        "--codec",
        metavar="FOLDER|FILE",
        help="VAE and normalisation: a network folder, such as the teacher's, or a JSON file "
        'such as {"kind": "vae", "vae": FOLDER, "scale": [...], "bias": [...]}',
    )
    parser.add_argument(
        "--resolution", type=int, default=512, metavar="R", help="pixels a side (default 512)"
    )
    parser.add_argument("--flip", action="store_true", help="add each image's mirror image")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what the VAE computes in (default float32)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of what is stored")
    parser.add_argument(
        "--shard-size",
        type=parse_bytes,
        default="512MB",
        metavar="SIZE",
        help="of a shard, at most (default 512MB)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images at once on a GPU"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="that read and crop images, a process (default: its share of the cores)",
    )
    parser.add_argument(
        "--part", type=_part, default=Part(), metavar="i/n", help="make part i of n, from 0 on"
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="default: the class folders, or largest label"
    )
    parser.add_argument("--unlabelled", action="store_true", help="make every sample class 0")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    options = parser.parse_args(arguments)
    if not options.vae and not options.codec:
        parser.error("give --vae FOLDER, or --codec")
    least = {"resolution": 1, "seed": 0, "batch_size": 1, "threads": 1, "num_classes": 1}
    for name, smallest in least.items():
        if (value := getattr(options, name)) is not None and value < smallest:
            parser.error(f"--{name.replace('_', '-')} {value} is below {smallest}")
    return options


def _part(text: str) -> Part:
    number, of = (int(word) for word in text.split("/"))
    if not 0 <= number < of:
        raise argparse.ArgumentTypeError(f"{text}: i/n with i from 0 to n - 1 is wanted")
    return Part(number, of)


def my_part(part: Part) -> Part:
    """The share of this rank within a part."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return Part(part.number * ranks + launched_rank(), part.of * ranks)


def my_threads() -> int:
    """This rank's share of the node's cores."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return max(1, usable_cores() // int(ranks))


def run(options: argparse.Namespace) -> int:
    """Encodes this process's share; returns the exit status.

    Raises:
        SidScaleError: the work cannot go on.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else "cpu"
    encoding = Encoding(
        options.resolution,
        options.flip,
        options.precision,
        options.dtype,
        options.shard_size,
        options.seed,
        options.batch_size,
        options.threads or my_threads(),
    )
    try:
        codec = codec_of(options)
        source = open_source(options.source, options.num_classes, options.unlabelled)
        encoder = Encoder(codec, encoding, torch.device(device))
        plan = plan_encoding(source, codec, encoding, encoder)
    except SidScaleError as error:  # the same on every rank
        tell_once(error)
        return 1
    making = ShardBuild(options.out, plan, my_part(options.part))
    with making.claimed():
        if not making.is_finished:
            mine = sum(plan.count(number) for number in making.mine)
            with tqdm(total=mine, unit=" images", disable=launched_rank() > 0) as bar:
                encode(source, making, encoding, encoder, bar.update)
        index = making.finish()
    if index is None:
        part = f"part {making.part.number}/{making.part.of}"
        print(f"{options.out}: {part} is done, others are not", flush=True)
    else:
        print(f"{options.out}: {index.samples:,} samples in {len(index.shards):,} shards")
    return 0


def codec_of(options: argparse.Namespace) -> VAECodec:
    """The VAE to encode with, and its normalisation.

    Raises:
        CodecError: nothing describes them.
    """
    codec = read_codec(options.codec, options.vae) if options.codec else stability_vae(options.vae)
    if not isinstance(codec, VAECodec):
        raise CodecError(f"{options.codec} describes no VAE: tools/make_shards.py stores pixels")
    codec.folder = codec.folder.resolve()
    return codec


def main(arguments: Sequence[str] | None = None) -> int:
    """Encodes; returns the exit status."""
    options = parse(arguments)
    try:
        return run(options)
    except SidScaleError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
