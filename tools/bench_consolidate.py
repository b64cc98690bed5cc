"""Measures consolidation: `python tools/bench_consolidate.py [--size l] [--ranks 8]`.

Writes the averaged generator of a synthetic checkpoint of a published size, cut over the ranks
as ZeRO 2 cuts it, then consolidates it in a process of its own. Beside it, in the same run: the
disk's own copy of the same bytes, and the peak memory over the interpreter's with its imports.
Needs about three times the network's size on disk (EDM2-L: 10 GB) under --folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sid_scale.networks import Architecture
from sid_scale.networks.edm2.sizes import SIZES, imagenet512
from sid_scale.networks.folder import describe
from sid_scale.tensor_file import Entry, Written, write_tensors
from sid_scale.zero.saved import (
    FORMAT_VERSION,
    MANIFEST,
    STATE,
    buffers_file,
    rank_file,
)

CONSOLIDATE = """
import resource, sys
from pathlib import Path
from sid_scale.distill.consolidate import consolidate
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
consolidate(Path(sys.argv[1]), "generator", "ema", Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def main() -> None:
    """Runs; prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="l", choices=list(SIZES))
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint, out = Path(folder) / "checkpoint", Path(folder) / "out"
        checkpoint.mkdir()
        largest = write_checkpoint(checkpoint, imagenet512(options.size), options.ranks)
        copied, copy_seconds = timed_copy(checkpoint, Path(folder) / "copy")
        shutil.rmtree(Path(folder) / "copy")
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CONSOLIDATE, str(checkpoint), str(out)],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
        peak = int(done.stdout)
    allowed = 2 * largest + 300e6
    figures = {
        "size": options.size,
        "ranks": options.ranks,
        "gigabytes": copied / 1e9,
        "seconds_per_gigabyte": seconds / (copied / 1e9),
        "copy_seconds_per_gigabyte": copy_seconds / (copied / 1e9),
        "ratio_to_copy": seconds / copy_seconds,
        "largest_tensor_megabytes": largest / 1e6,
        "peak_megabytes": peak / 1e6,
        "allowed_megabytes": allowed / 1e6,
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}))
    if peak > allowed:
        sys.exit("error: more memory than twice the largest tensor and 300 MB")


def write_checkpoint(folder: Path, architecture: Architecture, ranks: int) -> int:
    """A checkpoint that holds one network's average; returns its largest tensor's bytes."""
    with torch.device("meta"):
        network = architecture.build()
    shapes = {name: p.numel() for name, p in network.named_parameters()}
    share = -(-sum(shapes.values()) // ranks)
    files: dict[str, Written] = {}
    for rank in range(ranks):
        entries = [
            Entry(f"{name}@{start}", torch.float32, (numel,))
            for name, start, numel in partition(shapes, rank * share, (rank + 1) * share)
        ]
        name = rank_file("generator", "ema", rank, ranks)
        numbers = (torch.randn(*entry.shape) for entry in entries)
        files[name] = write_tensors(folder / name, entries, numbers)
    buffers = [Entry(f"{k}@0", torch.float32, (b.numel(),)) for k, b in network.named_buffers()]
    ones = (torch.ones(*entry.shape) for entry in buffers)
    name = buffers_file("generator")
    files[name] = write_tensors(folder / name, buffers, ones)
    description = describe(architecture, {"kind": "identity"}, {"kind": "generator"})
    state = json.dumps({"networks": {"generator": description}}).encode()
    (folder / STATE).write_bytes(state)
    files[STATE] = Written(len(state), hashlib.sha256(state).hexdigest())
    manifest = {k: written._asdict() for k, written in files.items()}
    (folder / MANIFEST).write_text(
        json.dumps({"format_version": FORMAT_VERSION, "files": manifest})
    )
    return 4 * max(shapes.values())


def partition(shapes: dict[str, int], begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """(name, first element, number of them) of the parameters, laid end to end, in [begin, end)."""
    place = 0
    for name, numel in shapes.items():
        low, high = max(begin, place), min(end, place + numel)
        if low < high:
            yield name, low - place, high - low
        place += numel


def timed_copy(source: Path, target: Path) -> tuple[int, float]:
    """Copies a folder and waits for the disk; returns bytes and seconds."""
    began = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    return sum(p.stat().st_size for p in source.iterdir()), time.perf_counter() - began


if __name__ == "__main__":
    main()
