"""Makes shards of latents that are ready, such as EDM2's img512-sd.zip, or of images as pixels.

    sid-scale shards --source img512-sd.zip --out /data/imagenet512 --workers 16
    sid-scale shards --source cifar-10-python.tar.gz --out /data/cifar10
    sid-scale shards --source ffhq-64x64.zip --out /data/ffhq64
    sid-scale shards --source ILSVRC2012/train --out /data/imagenet64 --resolution 64

SOURCE is a folder, a .zip or a .tar, which are read in place, or several of them: files .npy of
(2C, H, W), mean and standard deviation of a VAE's posterior, or images. Classes come from a
dataset.json as EDM writes it, {"labels": [[file, class], ...]} (or null: no classes), from
WebDataset's .cls beside each sample, or from class folders as ImageNet's (or class archives), in
the order of their names; all named by numbers, they are the classes of these numbers. Of splits the
training images are taken. CIFAR-10 can also be its authors' archive, packed or unpacked.

Images are stored as they are, in 8 bits: squares of the size that the teacher's network has.

The order is a seeded shuffle of all samples: any run of shards is a fair sample of all classes.
The bytes do not depend on the number of workers. Interrupted and started again, it goes on.
"""

import argparse
from typing import TYPE_CHECKING

from sid_scale.commands.arguments import add_workers, check_least, network
from sid_scale.commands.data_set import (
    add_data_set,
    check_fits_network,
    max_bad,
    open_data_set_source,
    print_made,
    use_codec_of_hub,
)
from sid_scale.dtypes import STORED

if TYPE_CHECKING:
    from sid_scale.codecs import Codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_set(parser)
    parser.add_argument(
        "--dtype",
        choices=STORED,
        help="what latents are stored in (default float32)",
    )
    add_workers(parser)
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="R",
        help="crop images to R x R pixels; without it all must have one size",
    )
    parser.add_argument(
        "--codec",
        type=network,
        metavar="FOLDER|FILE",
        help="what the latents were made with: a network folder that works with them, such as the "
        "teacher's, its name on the hub, or a JSON file that describes the codec; default: "
        "EDM2's, the Stability VAE",
    )
    parser.add_argument(
        "--vae",
        type=network,
        metavar="FOLDER",
        help="where that codec's VAE is, or its name on the hub (EDM2's: "
        "stabilityai/sd-vae-ft-mse)",
    )


def run(options: argparse.Namespace) -> int:
    check_least(options, workers=1, seed=0, resolution=1, num_classes=1, max_bad=0)
    use_codec_of_hub(options)
    from tqdm import tqdm

    from sid_scale.data.prepare.build import ShardBuild
    from sid_scale.data.prepare.pack import Packing, pack, plan_packing
    from sid_scale.process_pool import usable_cores

    source = open_data_set_source(options)
    packing = Packing(
        options.shard_size,
        options.dtype,
        options.seed,
        options.resolution,
        _codec(options),
    )
    plan = plan_packing(source, packing)
    check_fits_network(options, plan.format.shape)
    build = ShardBuild(options.out, plan, max_bad=max_bad(options))
    with build.claimed():
        if not build.is_finished:
            with tqdm(total=len(source), unit=" samples") as bar:
                for samples in pack(source, build, options.workers or usable_cores()):
                    bar.update(samples)
        index = build.finish()
        if index is None:
            build.check_refused()
    assert index is not None
    print_made(options.out, index)
    return 0


def _codec(options: argparse.Namespace) -> "Codec":
    """The codec of the source's latents."""
    from sid_scale.codecs import STABILITY_VAE, absolute, read_codec, stability_vae

    vae = absolute(options.vae) if options.vae else None
    return read_codec(options.codec, vae) if options.codec else stability_vae(vae or STABILITY_VAE)
