"""Checks a data set: reads all of it, compares it with its index, and latents with their codec.

    sid-scale check /data/imagenet512 --workers 16

Prints what was found as a table, and every fault. Exit status: 0 if all is well, 1 if not.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sid_scale.commands.arguments import add_workers, check_least, path

if TYPE_CHECKING:
    from sid_scale.data.prepare.verify import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="DIR", help="holds index.json and the shards")
    add_workers(parser)


def run(options: argparse.Namespace) -> int:
    check_least(options, workers=1)
    from tqdm import tqdm

    from sid_scale.data.prepare.verify import Report, check_shards
    from sid_scale.process_pool import usable_cores

    with tqdm(unit=" samples", leave=False) as bar:
        for step in check_shards(options.folder, options.workers or usable_cores()):
            if isinstance(step, Report):
                report = step
            else:
                bar.update(step)
    print("\n".join(_table(report)))
    return 1 if report.faults else 0


def _table(report: "Report") -> Iterator[str]:
    """What was found, line by line."""
    from sid_scale.codecs import SIGMA_DATA

    index = report.index
    size = sum(shard.bytes for shard in index.shards)
    occurring = sorted(count for count in report.classes.values())
    least = occurring[0] if len(occurring) == index.num_classes else 0
    most = occurring[-1] if occurring else 0
    kind = index.codec.get("kind")
    yield f"shards           {len(index.shards):,} of {size / 1e9:,.3f} GB"
    yield f"samples          {report.samples:,} of {index.samples:,}"
    yield f"each             {index.dtype} {index.sample_shape}, codec {kind}"
    yield f"classes          {len(occurring):,} of {index.num_classes:,}"
    yield f"samples a class  {least:,} to {most:,}"
    if report.channels:
        yield ""
        yield "channel      mean   assumed       std   assumed   in the network's units"
    for number, channel in enumerate(report.channels):
        scale = SIGMA_DATA / channel.assumed_std
        mean = (channel.mean - channel.assumed_mean) * scale
        yield (
            f"{number:7}{channel.mean:10.4f}{channel.assumed_mean:10.4f}{channel.std:10.4f}"
            f"{channel.assumed_std:10.4f}   {mean:+.4f} +- {channel.std * scale:.4f}"
        )
    yield ""
    yield from (f"FAULT  {fault}" for fault in report.faults)
    yield f"{len(report.faults)} faults" if report.faults else "good"
