"""Makes shards of latents that are ready, such as EDM2's img512-sd.zip, or of images as pixels.

    python tools/make_shards.py --source img512-sd.zip --out /data/imagenet512 --workers 16
    python tools/make_shards.py --source ILSVRC2012/train --out /data/imagenet64 --resolution 64

SOURCE is a folder or a zip archive, which is read in place, with a dataset.json as EDM2 writes it,
{"labels": [[file, class], ...]}, and files beside it: .npy of (2C, H, W), mean and standard
deviation of a VAE's posterior, or images. Images may lie in class folders instead, as ImageNet's.

The order is a seeded shuffle of all samples: any run of shards is a fair sample of all classes.
The bytes do not depend on the number of workers. Interrupted and started again, it goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sid_scale.codecs import Codec, read_codec, stability_vae
from sid_scale.data.prepare.build import ShardBuild
from sid_scale.data.prepare.pack import Packing, pack, plan_packing
from sid_scale.data.prepare.plan import parse_bytes
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import DTYPES
from sid_scale.errors import SidScaleError
from sid_scale.process_pool import usable_cores

STABILITY = "stabilityai/sd-vae-ft-mse"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="a folder or a zip archive")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--shard-size",
        type=parse_bytes,
        default="512MB",
        metavar="SIZE",
        help="of a shard, at most (default 512MB)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of what is stored; default: float32 for latents, and float16 for pixels, of which "
        "it holds 8 bits exactly",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="processes (default: as many as there are cores)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="R",
        help="crop images to R x R pixels; without it all must have one size",
    )
    parser.add_argument(
        "--codec",
        metavar="FOLDER|FILE",
        help="what the latents were made with: a network folder that works with them, such as the "
        "teacher's, or a JSON file that describes the codec; default: EDM2's, the Stability VAE",
    )
    parser.add_argument(
        "--vae", metavar="FOLDER", help=f"where that codec's VAE lies (EDM2's: {STABILITY})"
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="default: up to the largest label"
    )
    parser.add_argument("--unlabelled", action="store_true", help="make every sample class 0")
    options = parser.parse_args(arguments)
    for name, least in (("workers", 1), ("seed", 0), ("resolution", 1), ("num_classes", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} {value} is below {least}")
    return options


def codec_of(options: argparse.Namespace) -> Codec:
    """The codec of the source's latents."""
    vae = str(Path(options.vae).resolve()) if options.vae else None
    return read_codec(options.codec, vae) if options.codec else stability_vae(vae or STABILITY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the shards; returns the exit status."""
    options = parse(arguments)
    try:
        source = open_source(options.source, options.num_classes, options.unlabelled)
        packing = Packing(
            options.shard_size,
            options.dtype,
            options.seed,
            options.resolution,
            codec_of(options).describe(),
        )
        making = ShardBuild(options.out, plan_packing(source, packing))
        with making.claimed():
            if not making.is_finished:
                with tqdm(total=len(source), unit=" samples") as bar:
                    for samples in pack(source, making, options.workers):
                        bar.update(samples)
            index = making.finish()
    except SidScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    assert index is not None
    classes = sum(count > 0 for count in index.class_histogram)
    print(
        f"{options.out}: {index.samples:,} samples of {classes:,} classes in "
        f"{len(index.shards):,} shards"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
