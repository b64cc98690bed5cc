"""Measures the stream: `python tools/bench_stream.py [--samples 2000] [--sizes 1,4,16]`.

Writes data sets of random latents (float32, 8x64x64 unless told otherwise), or with --pixels of
random images (3x64x64), and reads them in turn,
several rounds, with this stream, with plain WebDataset (the same decoding, a shuffle buffer of the
same size), and out of memory. All files are in the page cache, and all threads that work on one
core. Rates are per second of processor time, the median of the rounds, from 8 shards (133 MB each,
unless told otherwise). Times to the first batch are medians, too, from 100 shards. Memory is each
one's high-water mark in a process of its own, over that of the imports. Needs about 140 KB a sample
and unit of size on disk (--sizes 1,4,16: 7 GB) under --folder; all but the largest set should fit
into memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds

from sid_scale.data.order import SHUFFLE
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.shards import PIXELS, read_index, read_shard
from sid_scale.data.stream import SampleStream

SHARDS = 100
RATE_SHARDS = 8
CLASSES = 1000
ROUNDS_AN_EPOCH = 4  # short ones: what else the machine does then meets all contenders alike
SETTLE_SECONDS = 0.2
MEMORY_BAR = 50  # megabytes from the smallest to the largest set


class Rate(NamedTuple):
    """Samples a second: of processor time, and by the clock."""

    per_core: float
    by_clock: float


def main() -> int:
    """Runs; prints tables and whether the bars are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000, help="in the smallest set")
    parser.add_argument("--sizes", default="1,4,16", help="multiples of it, the first one 1")
    parser.add_argument("--side", type=int, default=64, help="of a sample, in elements")
    parser.add_argument("--pixels", action="store_true", help="of images instead of latents")
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary one)")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.memory_of:
        name, folder = options.memory_of
        print(high_water(name, Path(folder), options.micro_batch))
        return 0
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.samples < SHARDS or min(sizes) < 1 or options.rounds < 1:
        parser.error(f"at least {SHARDS} samples, sizes and rounds of at least 1")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sets = {size: Path(folder) / f"x{size}" for size in sizes}
        for size, path in sets.items():
            write(path, options.samples * size, options.side, SHARDS, options.pixels)
        for_rates = Path(folder) / "rates"
        count = options.samples * min(4, sizes[-1])
        write(for_rates, count, options.side, RATE_SHARDS, options.pixels)
        met = [
            *compare_rates(for_rates, options.micro_batch, options.rounds),
            *compare_starts(sets[sizes[-1]], options.micro_batch, options.rounds),
            *compare_memory(sets, options.micro_batch),
        ]
    print()
    for line, is_met in met:
        print(f"{'met   ' if is_met else 'MISSED'}  {line}")
    return 0


def write(folder: Path, samples: int, side: int, shards: int, pixels: bool) -> None:
    """A data set of so many shards."""
    rng = np.random.default_rng(0)
    if pixels:
        values = rng.integers(0, 256, (64, 3, side, side), np.uint8)
    else:
        values = rng.standard_normal((64, 8, side, side), dtype=np.float32)
    write_shards(
        folder,
        ((f"{i:08d}", values[i % len(values)], i % CLASSES) for i in range(samples)),
        codec={},
        num_classes=CLASSES,
        shard_samples=-(-samples // shards),
        dtype=values.dtype.name,
    )


# --- the contenders: each yields the number of samples in what it has just read ---------------


def stream(folder: Path, micro_batch: int) -> Iterator[int]:
    """This project's stream, without end."""
    with open_stream(folder, micro_batch) as batches:
        while True:
            yield len(next(batches).stored)


def open_stream(folder: Path, micro_batch: int, start: int = 0) -> SampleStream:
    return SampleStream(
        folder,
        seed=0,
        global_batch=micro_batch,
        rank=0,
        world_size=1,
        micro_batch=micro_batch,
        start=start,
    )


def webdataset(folder: Path, micro_batch: int) -> Iterator[int]:
    """WebDataset, again and again."""
    index = read_index(folder)

    def array(npy: bytes) -> torch.Tensor:
        return torch.from_numpy(np.load(BytesIO(npy), allow_pickle=False))

    urls = [str(folder / shard.name) for shard in index.shards]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=0)
    batches = dataset.shuffle(min(SHUFFLE, index.samples)).to_tuple("npy", "cls")
    batches = batches.map_tuple(array, int).batched(micro_batch, partial=False)
    while True:
        for stored, _ in batches:
            yield len(stored)


def memory(folder: Path, micro_batch: int) -> Iterator[int]:
    """All samples in memory, gathered in a new order each epoch."""
    index = read_index(folder)
    dtype = torch.uint8 if index.dtype == PIXELS else torch.float32
    stored = torch.empty(index.samples, *index.sample_shape, dtype=dtype)
    at = 0
    for shard in index.shards:
        for record in read_shard(folder, shard):
            stored[at] = torch.from_numpy(np.load(BytesIO(record.npy), allow_pickle=False))
            at += 1
    while True:
        for rows in torch.randperm(len(stored)).split(micro_batch):
            yield len(stored[rows])


CONTENDERS: dict[str, Callable[[Path, int], Iterator[float]]] = {
    "stream": stream,
    "webdataset": webdataset,
    "memory": memory,
}


# --- what is measured -------------------------------------------------------------------------


def compare_rates(folder: Path, micro_batch: int, rounds: int) -> list[tuple[str, bool]]:
    """Samples a second; every round begins with another contender."""
    samples = read_index(folder).samples
    running = {name: make(folder, micro_batch) for name, make in CONTENDERS.items()}
    for contender in running.values():  # fill the shuffle buffers and the page cache
        measure(contender, samples)
    rates: dict[str, list[Rate]] = {name: [] for name in running}
    names = list(running)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rates[name].append(measure(running[name], samples / ROUNDS_AN_EPOCH))
    for contender in running.values():
        contender.close()  # type: ignore[attr-defined]
    print(f"{samples} samples, micro-batches of {micro_batch}, median of {rounds} rounds\n")
    print(f"{'':12}{'samples/s/core':>16}{'samples/s':>12}{'stream is':>12}")
    ratios = {}
    for name in names:
        pairs = zip(rates["stream"], rates[name], strict=True)
        ratios[name] = median(ours.per_core / theirs.per_core for ours, theirs in pairs)
        core, clock = (median(column) for column in zip(*rates[name], strict=True))
        print(f"{name:12}{core:16,.0f}{clock:12,.0f}{ratios[name]:11.2f}x")
    return [
        (f"{ratios['webdataset']:.2f} times WebDataset's rate; bar 3", ratios["webdataset"] >= 3),
    ]


def measure(contender: Iterator[float], samples: float) -> Rate:
    """How fast the next `samples` samples come."""
    seconds, processor = time.perf_counter(), time.process_time()
    count = 0.0
    while count < samples:
        count += next(contender)
    seconds = time.perf_counter() - seconds
    time.sleep(SETTLE_SECONDS)  # what is read ahead meanwhile counts, too, and here
    return Rate(count / (time.process_time() - processor), count / seconds)


def compare_starts(folder: Path, micro_batch: int, rounds: int) -> list[tuple[str, bool]]:
    """Seconds to the first batch, at the beginning and from the middle of the second epoch."""
    samples = read_index(folder).samples
    middle = (samples + samples // 2) // micro_batch * micro_batch
    seconds: dict[int, list[float]] = {0: [], middle: []}
    for _ in range(rounds):
        for start, found in seconds.items():
            began = time.perf_counter()
            with open_stream(folder, micro_batch, start) as batches:
                next(batches)
                found.append(time.perf_counter() - began)
    fresh, resumed = (median(found) for found in seconds.values())
    print(f"\nfirst batch of {SHARDS} shards: start {1e3 * fresh:.1f} ms, ", end="")
    print(f"resumed in the middle of an epoch {1e3 * resumed:.1f} ms")
    ratio = resumed / fresh
    return [(f"resume takes {ratio:.2f} of a fresh start; bar 2", ratio < 2)]


def compare_memory(sets: dict[int, Path], micro_batch: int) -> list[tuple[str, bool]]:
    """High-water marks by size of the data set."""
    print(f"\n{'MB in memory':12}" + "".join(f"{f'x{size}':>10}" for size in sets))
    growth = 0.0
    for name in CONTENDERS:
        marks = []
        for folder in sets.values():
            command = [sys.executable, __file__, "--memory-of", name, str(folder)]
            command += ["--micro-batch", str(micro_batch)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            marks.append(float(done.stdout))
        print(f"{name:12}" + "".join(f"{mark:10.0f}" for mark in marks))
        if name == "stream":
            growth = max(marks) - marks[0]
    return [
        (f"memory grows by {growth:.0f} MB with the data; bar {MEMORY_BAR}", growth < MEMORY_BAR)
    ]


def high_water(name: str, folder: Path, micro_batch: int) -> float:
    """Megabytes that reading an epoch and a half takes at most, over those of the imports."""
    before = resident("VmRSS")
    measure(CONTENDERS[name](folder, micro_batch), 1.5 * read_index(folder).samples)
    return max(0, resident("VmHWM") - before) / 1e6  # the kernel counts a little in arrears


def resident(field: str) -> int:
    """A figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
