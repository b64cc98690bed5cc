"""Arguments of the commands that make a data set, and the source that they name."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sid_scale.commands.arguments import byte_count, path
from sid_scale.errors import UsageError, launched_rank

if TYPE_CHECKING:
    from sid_scale.data.prepare.class_labels import ClassCount
    from sid_scale.data.prepare.raw_samples import Source
    from sid_scale.data.shards import ShardIndex
    from sid_scale.networks.folder import NetworkFolder

MAX_BAD = 100


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """What the data set is made of, and where it goes."""
    parser.add_argument(
        "--source",
        type=path,
        required=True,
        nargs="+",
        action="extend",
        metavar="SOURCE",
        help="see above; several hold parts of one data set",
    )
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--shard-size",
        type=byte_count,
        default="512MB",
        metavar="SIZE",
        help="of a shard, at most (default 512MB)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    _add_classes(parser)
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="of CIFAR-10's own archives (default: train, 50,000 images)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("stop", "skip"),
        default="stop",
        help="stop (default): try all, report those that are refused, write no shard that lacks "
        "one; skip: leave them out, and list them in recipe.json",
    )
    parser.add_argument(
        "--max-bad",
        type=int,
        metavar="N",
        help="skip so many at most (default 100); more is an error, and what is finished stays",
    )


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unlabelled", action="store_true", help="make a data set without classes")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="how many classes there must be (default: as many as the network of --codec has, or "
        "as there are class folders, or up to the largest label)",
    )
    parser.add_argument(
        "--empty-classes",
        action="store_true",
        help="class folders without samples, and numbers without a folder, are classes too",
    )


def open_data_set_source(options: argparse.Namespace) -> "Source":
    """The source that is named, whose notes are printed on stderr.

    Raises:
        SidScaleError: it cannot be used.
        UsageError: options contradict each other.
    """
    if options.max_bad is not None and options.on_bad_image == "stop":
        raise UsageError("--max-bad is for --on-bad-image skip")
    if options.unlabelled and options.num_classes:
        raise UsageError("--num-classes, and --unlabelled: give the one or the other")
    for source in options.source:
        if options.out.resolve().is_relative_to(source.resolve()) and not source.is_file():
            raise UsageError(f"--out {options.out} lies in --source {source}; give another place")
    from sid_scale.data.prepare.shard_notes import known_refusals
    from sid_scale.data.prepare.sources import open_source

    source = open_source(
        options.source,
        _expected_classes(options),
        unlabelled=options.unlabelled,
        empty_classes=options.empty_classes,
        refused=known_refusals(options.out),
        split=options.split,
    )
    if launched_rank() == 0:
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
    return source


def max_bad(options: argparse.Namespace) -> int | None:
    """How many samples may be left out; None: shards without some are not written."""
    if options.on_bad_image == "stop":
        return None
    return MAX_BAD if options.max_bad is None else options.max_bad


def print_made(folder: Path, index: "ShardIndex") -> None:
    """Says what a finished data set holds, and what it lacks."""
    from sid_scale.data.prepare.shard_notes import left_out_of

    classes = sum(count > 0 for count in index.class_histogram)
    lacks = len(left_out_of(folder))
    about = f"; {lacks:,} are left out, as recipe.json lists" if lacks else ""
    shards = f"{len(index.shards):,} shards"
    print(f"{folder}: {index.samples:,} samples of {classes:,} classes in {shards}{about}")


def _expected_classes(options: argparse.Namespace) -> "ClassCount | None":
    """How many classes the user or the network of `--codec` wants.

    Raises:
        UsageError: they want different numbers.
    """
    from sid_scale.data.prepare.class_labels import ClassCount

    given = ClassCount(options.num_classes, "--num-classes") if options.num_classes else None
    network = network_of_codec(options)
    label_dim = network.architecture.label_dim if network else 0
    if not label_dim:
        return given  # an unconditional network has no use for classes, whatever they are
    if given and given.number != label_dim:
        raise UsageError(
            f"--num-classes {given.number}, but the network in {options.codec} has {label_dim} "
            "classes; give the one or the other"
        )
    return ClassCount(label_dim, f"the network in {options.codec}")


def use_codec_of_hub(options: argparse.Namespace) -> None:
    """Fetches the network that `--codec` names by its name on the hub, if it does."""
    from sid_scale.hub.folders import local_folders
    from sid_scale.hub.names import is_name

    if options.codec and is_name(options.codec):
        options.codec = str(local_folders({"--codec": options.codec})["--codec"])


def network_of_codec(options: argparse.Namespace) -> "NetworkFolder | None":
    """The network that `--codec` names, without its weights; None: it names a file, or nothing."""
    from sid_scale.networks.folder import WEIGHTS, read_description

    if not options.codec or not (Path(options.codec) / WEIGHTS).is_file():
        return None
    return read_description(options.codec)


def check_fits_network(options: argparse.Namespace, shape: tuple[int, ...]) -> None:
    """Compares the shape of what would be stored with the network that `--codec` names, if it does.

    Raises:
        UsageError: the network takes another one.
    """
    from sid_scale.codecs import open_codec

    network = network_of_codec(options)
    if network is None:
        return
    codec, takes = open_codec(network.codec), network.architecture.sample_shape
    stored = codec.stored_shape(takes)
    if stored != shape:
        wanted = f"{takes}" if takes == stored else f"{takes}, stored as {stored}"
        raise UsageError(
            f"samples would be of shape {shape}, but the network in {options.codec} takes "
            f"{wanted}; give another --resolution, or source"
        )
