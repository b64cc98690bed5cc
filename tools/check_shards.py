"""Checks a data set: reads all of it, compares it with its index and its latents with their codec.

    python tools/check_shards.py /data/imagenet512 --workers 16

Prints what was found as a table, and every fault. Exit status: 0 if all is well, 1 if not.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from sid_scale.codecs import SIGMA_DATA
from sid_scale.data.prepare.verify import Report, check_shards
from sid_scale.errors import SidScaleError
from sid_scale.process_pool import usable_cores


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds index.json and the shards")
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="processes (default: as many as there are cores)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers} is below 1")
    return options


def table(report: Report) -> Iterator[str]:
    """What was found, line by line."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks; returns the exit status."""
    options = parse(arguments)
    try:
        checks = check_shards(options.folder, options.workers)
        with tqdm(unit=" samples", leave=False) as bar:
            for step in checks:
                if isinstance(step, Report):
                    report = step
                else:
                    bar.update(step)
    except SidScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print("\n".join(table(report)))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
