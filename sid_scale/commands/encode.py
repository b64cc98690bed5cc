"""Encodes images into shards of what a teacher sees: a VAE's latents, or pixels.

    torchrun --nproc_per_node 8 -m sid_scale encode --source ILSVRC2012/train \\
        --vae sd-vae-ft-mse --out /data/imagenet512 --vae-dtype bfloat16
    torchrun --nproc_per_node 8 -m sid_scale encode --source ILSVRC2012/train \\
        --codec teachers/edm-imagenet-64x64-cond-adm --out /data/imagenet64

SOURCE is a folder of class folders, as ImageNet's, or a .zip, a .tar, a tar of class tars, several
of them, or pixel shards; `sid-scale shards --help` says where classes come from. Images are cropped
and resized as ADM does it. For a teacher of pixels `sid-scale shards` does the same on one machine.

Each process makes shards of its own in a folder that all share: ranks of `torchrun` or `deepspeed`,
parts of a SLURM array (`--array=0-7` with `--part $SLURM_ARRAY_TASK_ID/8`), or both. They need not
run at the same time. The last one writes the index. Interrupted and started again, on any number of
processes, it goes on; finished shards are compared with their checksums and kept.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sid_scale.commands.arguments import check_least, network
from sid_scale.commands.data_set import (
    add_data_set,
    check_fits_network,
    max_bad,
    network_of_codec,
    open_data_set_source,
    print_made,
    use_codec_of_hub,
)
from sid_scale.devices import own_device
from sid_scale.dtypes import COMPUTE, STORED
from sid_scale.errors import SidScaleError, UsageError, launched_rank

if TYPE_CHECKING:
    from sid_scale.codecs import Codec
    from sid_scale.data.prepare.build import Share


RESOLUTION = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_set(parser)
    parser.add_argument(
        "--vae",
        type=network,
        metavar="FOLDER",
        help="diffusers folder of the VAE, or its name on the hub; without --codec it is taken "
        "for the Stability VAE, whose normalisation EDM2's ImageNet-512 models have",
    )
    parser.add_argument(
        "--codec",
        type=network,
        metavar="FOLDER|FILE",
        help="VAE and normalisation: a network folder, such as the teacher's, its name on the hub, "
        'or a JSON file such as {"kind": "vae", "vae": FOLDER, "scale": [...], "bias": [...]}',
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="R",
        help="pixels a side (default 512; of a network of pixels that --codec names, its size)",
    )
    parser.add_argument("--flip", action="store_true", help="add each image's mirror image")
    parser.add_argument(
        "--vae-dtype",
        choices=COMPUTE,
        default="float32",
        help="what the VAE computes in (default float32)",
    )
    parser.add_argument(
        "--dtype", choices=STORED, help="what latents are stored in (default float32)"
    )
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
        "--part", type=_part, default=(0, 1), metavar="i/n", help="make part i of n, from 0 on"
    )


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (number.isdecimal() and slash and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text}: i/n with i from 0 to n - 1 is wanted")
    return int(number), int(of)


def run(options: argparse.Namespace) -> int:
    if not options.vae and not options.codec:
        raise UsageError("give --vae FOLDER, or --codec")
    check_least(options, resolution=1, seed=0, batch_size=1, threads=1, num_classes=1, max_bad=0)
    use_codec_of_hub(options)
    from tqdm import tqdm

    from sid_scale.data.prepare.build import ShardBuild
    from sid_scale.data.prepare.encode import Encoder, Encoding, encode, plan_encoding

    device = own_device()
    codec = _codec(options)
    encoding = Encoding(
        options.resolution or _resolution(options, codec),
        options.flip,
        options.vae_dtype,
        options.dtype,
        options.shard_size,
        options.seed,
        options.batch_size,
        options.threads or _threads(),
    )
    source = open_data_set_source(options)
    encoder = Encoder(codec, encoding, device)
    plan = plan_encoding(source, codec, encoding, encoder)
    check_fits_network(options, plan.format.shape)
    build = ShardBuild(
        options.out, plan, shares_of_ranks(*options.part)[launched_rank()], max_bad(options)
    )
    try:
        with build.claimed():
            if not build.is_finished:
                mine = sum(plan.count(number) for number in build.mine)
                with tqdm(total=mine, unit=" images", disable=launched_rank() > 0) as bar:
                    encode(source, build, encoding, encoder, bar.update)
            index = build.finish()
        if index is None:
            # The launcher ends all ranks when one fails, and others may have images to look at.
            build.wait_for(shares_of_ranks(*options.part))
            build.check_refused()
    except (SidScaleError, OSError) as error:
        if launched_rank() > 0:  # its errors are its own: those above are met by all ranks
            print(f"error: rank {launched_rank()}: {error}", file=sys.stderr, flush=True)
        raise
    if index is None:
        part = f"part {build.share.number}/{build.share.of}"
        print(f"{options.out}: {part} is done, others are not", flush=True)
    else:
        print_made(options.out, index)
    return 0


def shares_of_ranks(number: int, of: int) -> list["Share"]:
    """The launcher's ranks' shares of part `number` of `of`."""
    from sid_scale.data.prepare.build import Share

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return [Share(number * ranks + rank, of * ranks) for rank in range(ranks)]


def _threads() -> int:
    """This rank's share of the node's cores."""
    from sid_scale.process_pool import usable_cores

    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return max(1, usable_cores() // int(ranks))


def _codec(options: argparse.Namespace) -> "Codec":
    """What to encode with: a VAE and its normalisation, or nothing.

    Raises:
        CodecError: nothing describes them.
    """
    from sid_scale.codecs import VAECodec, absolute, read_codec, stability_vae

    codec = read_codec(options.codec, options.vae) if options.codec else stability_vae(options.vae)
    if isinstance(codec, VAECodec):
        codec.folder = Path(absolute(str(codec.folder)))
    return codec


def _resolution(options: argparse.Namespace, codec: "Codec") -> int:
    """That of the network of pixels that --codec names, or else EDM2's."""
    from sid_scale.codecs import IdentityCodec

    network = network_of_codec(options)
    if network is None or not isinstance(codec, IdentityCodec):
        return RESOLUTION
    return network.architecture.sample_shape[-1]
