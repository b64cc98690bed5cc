"""Measures an iteration: `python tools/bench_step.py --size 30m --dtype bfloat16 [key=value ...]`.

In turns, in one process: this project's iteration through the code that a run uses (build_run,
DeepSpeed, the stream of shards; one rank), and the published iteration written plainly
(plain_step.py). Ratios are of neighbouring turns, whose machine is the same. A preset's teacher
that is not there is made up; shards always are. On a CPU that is shared with other work compare the
seconds of the host's cores (all threads' time at work), with one thread (OMP_NUM_THREADS=1).

Told are images a second, milliseconds by phase, the share of the rate of a large matrix product on
the same device in the same dtype (FLOP as the method needs them, none of recomputation), and peak
memory. That is measured with each implementation alone in a process of its own, over two iterations
once it is built: on CUDA `max_memory_allocated`, elsewhere what the process has for itself beyond
what it had before building.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from bench_table import details
from own_step import OwnStep
from plain_step import PlainStep
from safetensors.torch import load_file
from step_measures import (
    PeakPrivateMemory,
    matmul_flops,
    private_memory,
    synchronisations,
    write_profile,
)
from step_setup import NETWORKS, SMALL, prepare

from sid_scale.commands.arguments import check_least, positive
from sid_scale.config.run import RunConfig, load_config
from sid_scale.dtypes import COMPUTE, torch_dtype
from sid_scale.errors import SidScaleError
from sid_scale.estimate.report import make_plan
from sid_scale.networks import parameter_count
from sid_scale.networks.edm2.sizes import SIZES
from sid_scale.networks.folder import WEIGHTS, read_description
from sid_scale.ranks import Ranks, joined_ranks
from sid_scale.zero.settings import read_deepspeed_json

IMPLEMENTATIONS = ("own", "plain")
# glibc then gives every tensor of some size back to the system at once.
TIGHT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

T = TypeVar("T")
Iterate = Callable[[], dict[str, float]]  # -> milliseconds by phase


def main() -> int:
    """Runs; prints a table, or one JSON object."""
    options = parse_options()
    try:
        check_least(options, warm_up=0)
        for folder in filter(None, (options.folder, options.profile)):
            folder.mkdir(parents=True, exist_ok=True)
        if options.peak_of:
            print(json.dumps(peak_memory(options.peak_of, options.folder, options)))
            return 0
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures = measure(options, Path(folder))
    except (SidScaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, SidScaleError) else 1
    print(json.dumps(figures) if options.json else details(figures))
    return 0


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--size", default="30m", choices=[*SMALL, *SIZES])
    what.add_argument("--config", help="a preset's name or a run's YAML instead of a size")
    parser.add_argument("--batch", type=positive, help="images of an update; 8, or the config's")
    parser.add_argument(
        "--micro-batch", type=positive, help="images at once; the batch, or the config's"
    )
    parser.add_argument("--dtype", choices=COMPUTE, help="instead of float32, or the config's")
    parser.add_argument("--plain-dtype", choices=COMPUTE, default="float32", help="of the other")
    parser.add_argument("--stage", type=int, choices=range(4), help="of ZeRO; 0, or the config's")
    parser.add_argument(
        "--activations",
        choices=["keep", "checkpoint", "offload"],
        help="of all three networks; keep, or the config's",
    )
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--which", choices=[*IMPLEMENTATIONS, "both"], default="both")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--profile", type=Path, help="folder for profiles of one iteration")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary one)")
    parser.add_argument("--peak-of", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    return parser.parse_args(arguments)


# --- measuring ----------------------------------------------------------------------------


def joined(action: Callable[[Ranks], T]) -> T:
    """What `action` returns or raises on the only rank; leaving the ranks by an exception would end
    this process at once, with large files left behind."""
    outcome: list[T] = []
    failure: Exception | None = None
    with joined_ranks() as ranks:
        try:
            outcome.append(action(ranks))
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return outcome[0]


@contextmanager
def built(
    which: str, config: RunConfig, ranks: Ranks, plain_dtype: torch.dtype
) -> Iterator[Iterate]:
    """An iteration of "own" or "plain", ready to be called."""
    if which == "own":
        with OwnStep(config, ranks) as own:
            yield own.iterate
        return
    if config.steps != 1:
        raise SidScaleError(f"steps is {config.steps}; the plain iteration takes 1: --which own")
    settings = asdict(read_description(config.teacher).architecture)
    state = load_file(Path(config.teacher) / WEIGHTS)
    plain = PlainStep(config, settings, state, ranks.device, plain_dtype)
    batches = plain.batches()
    yield lambda: plain.iterate(batches)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, for `bench_table.py`."""
    names = [name for name in IMPLEMENTATIONS if options.which in (name, "both")]
    config = prepare(options, folder)
    peaks = {} if options.no_memory else {name: peak_memory_alone(name, folder) for name in names}
    timed = joined(lambda ranks: in_turns(names, config, ranks, options))
    architecture = read_description(config.teacher).architecture
    count = make_plan(config, 1, 1).count
    flop = count.model_flop * config.batch_size / count.samples  # an iteration's
    figures = {
        "what": options.config or options.size,
        "parameters": parameter_count(architecture),
        "batch": config.batch_size,
        "micro_batch": config.micro_batch,
        "method": config.method,
        "compile": config.compile_blocks,
        "activations": _activations(config),
        "stage": read_deepspeed_json(config.deepspeed, config.micro_batch, 1).stage,
        "device": device_name(),
        "tflop": flop / 1e12,
        **{name: _figures(timed[name], config.batch_size, flop) for name in names},
    }
    for name, peak in peaks.items():
        figures[name]["peak_gigabytes"] = None if peak is None else peak / 1e9
    if len(names) == 2:
        figures["speed_ratio"] = _ratio(timed, "seconds")
        figures["cpu_ratio"] = _ratio(timed, "cpu_seconds")
        own, plain = (peaks.get(name) for name in IMPLEMENTATIONS)
        if own and plain:
            figures["memory_ratio"] = own / plain
    return figures


def in_turns(
    names: list[str], config: RunConfig, ranks: Ranks, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """By implementation: seconds, phases and the matrix product's FLOP a second of each round."""
    plain_dtype = torch_dtype(options.plain_dtype)
    own_dtype = read_deepspeed_json(config.deepspeed, config.micro_batch, 1).compute_dtype
    dtypes = {"own": own_dtype, "plain": plain_dtype}
    timed: dict[str, dict[str, Any]] = {
        name: {"seconds": [], "cpu_seconds": [], "phases": [], "matmul": [], "dtype": dtypes[name]}
        for name in names
    }
    with ExitStack() as stack:
        iterations = {
            name: stack.enter_context(built(name, config, ranks, plain_dtype)) for name in names
        }
        for turn in range(options.warm_up + options.rounds):
            for name in names if turn % 2 else names[::-1]:
                ceiling = matmul_flops(ranks.device, dtypes[name])
                began = time.process_time()
                phases = iterations[name]()
                cpu_seconds = time.process_time() - began
                if turn >= options.warm_up:
                    timed[name]["seconds"].append(sum(phases.values()) / 1000)
                    timed[name]["cpu_seconds"].append(cpu_seconds)
                    timed[name]["phases"].append(phases)
                    timed[name]["matmul"].append(ceiling)
        for name, iterate in iterations.items():
            if ranks.device.type == "cuda":
                timed[name]["synchronisations"] = synchronisations(iterate)
            if options.profile:
                write_profile(iterate, options.profile / name, ranks.device)
    return timed


def _activations(config: RunConfig) -> str:
    """One word where all networks have the same."""
    by_network = {name: config.activations.get(name, "keep") for name in NETWORKS}
    if len(set(by_network.values())) == 1:
        return str(by_network["teacher"])
    return ", ".join(f"{name} {how}" for name, how in by_network.items())


def _ratio(timed: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    """How many times as much of `key` the plain iteration needs, round by round."""
    ratios = [plain / own for plain, own in zip(timed["plain"][key], timed["own"][key])]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _figures(timed: dict[str, Any], batch: int, flop: float) -> dict[str, Any]:
    seconds = statistics.median(timed["seconds"])
    ceiling = statistics.median(timed["matmul"])
    phases = {
        name: statistics.median(phases[name] for phases in timed["phases"])
        for name in timed["phases"][0]
    }
    return {
        "dtype": str(timed["dtype"]).removeprefix("torch."),
        "images_per_second": batch / seconds,
        "cpu_seconds": statistics.median(timed["cpu_seconds"]),
        "matmul_tflops": ceiling / 1e12,
        "utilisation": flop / seconds / ceiling,
        "milliseconds": {"all": 1000 * seconds, **phases},
        "synchronisations": timed.get("synchronisations"),
    }


def peak_memory(which: str, folder: Path, options: argparse.Namespace) -> int | None:
    """Peak bytes of two iterations, in this process; None: more than the GPU has."""
    config = load_config(folder / "bench.yaml")

    def peak_of_two(ranks: Ranks) -> int:
        before = private_memory()
        with built(which, config, ranks, torch_dtype(options.plain_dtype)) as iterate:
            if ranks.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with PeakPrivateMemory() as peak:
                for _ in range(2):
                    iterate()
        on_cuda = ranks.device.type == "cuda"
        return torch.cuda.max_memory_allocated() if on_cuda else peak.nbytes - before

    try:
        return joined(peak_of_two)
    except torch.OutOfMemoryError:
        return None


def peak_memory_alone(which: str, folder: Path) -> int | None:
    """`peak_memory` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", which]
    done = subprocess.run(
        [*command, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, **TIGHT_MALLOC},
        text=True,
    )
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout.splitlines()[-1])


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
