"""Measures noise that is drawn ahead: `python tools/bench_noise.py [--micro-batch 64]`.

Draws what one micro-batch of SiDA's fake score asks for, at EDM2's latents of 4x64x64 unless told
otherwise; in turns, several rounds, when the loss asks for it, and a micro-batch ahead on a thread.
In between the training thread either waits for the device (--device-ms: it sleeps) or launches
kernels (--launches: operations on one number), for which it needs the interpreter that the drawing
thread needs, too. Prints milliseconds a micro-batch, the median of the rounds: what the training
thread spends until it has its noise, and all in all.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median

import torch

from sid_scale.data.labels import LabelStream
from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.distill.ahead import Prepared, ReadAhead

CPU = torch.device("cpu")
ROLE, SEED, CLASSES = "fake_score", 0, 1000


def main() -> None:
    """Runs; prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=64, help="of a latent, in elements")
    parser.add_argument("--device-ms", type=float, default=100, help="of a micro-batch")
    parser.add_argument("--launches", type=int, default=20_000, help="of a micro-batch")
    parser.add_argument("--batches", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = (4, options.side, options.side)

    def waits() -> None:
        time.sleep(options.device_ms / 1000)

    def launches() -> None:
        number = torch.zeros(1)
        for _ in range(options.launches):
            number.add_(1)

    print(f"{'between':10s} {'drawn':10s} {'until there':>12s} {'all in all':>12s}")
    for work in (waits, launches):
        found: dict[str, list[tuple[float, float]]] = {"on demand": [], "ahead": []}
        for _ in range(options.rounds):
            for way, times in found.items():
                stream = LabelStream([1] * CLASSES, seed=SEED, **place(options.micro_batch))
                ahead = ReadAhead(stream, SEED, ROLE, CPU)
                batches = ahead if way == "ahead" else on_demand(stream)
                times.append(measure(batches, shape, work, options.batches))
                ahead.close()
        for way, times in found.items():
            until, total = (1000 * median(column) for column in zip(*times, strict=True))
            print(f"{work.__name__:10s} {way:10s} {until:12.2f} {total:12.2f}")


def place(micro_batch: int) -> dict[str, int]:
    return {"global_batch": micro_batch, "rank": 0, "world_size": 1, "micro_batch": micro_batch}


def on_demand(stream: LabelStream) -> Iterator[Prepared]:
    for batch in stream:
        yield Prepared(batch, KeyedNoise(SEED, ROLE, batch.index, CPU))


def measure(
    batches: Iterator[Prepared], shape: tuple[int, ...], work: Callable[[], None], count: int
) -> tuple[float, float]:
    """Seconds a micro-batch until its noise is there, and with the work."""
    spent = 0.0
    for _, noise in islice(batches, 2):  # the second is the last that is drawn on demand
        ask(noise, shape)
    work()
    begun = time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        ask(next(batches).noise, shape)
        spent += time.perf_counter() - asked
        work()
    return spent / count, (time.perf_counter() - begun) / count


def ask(noise: KeyedNoise, shape: tuple[int, ...]) -> None:
    """What SiDA's fake score draws."""
    noise.of("z").normal(*shape)
    noise.of("step_noise").normal(0, *shape)
    noise.of("sigma").normal(1, 1, 1)
    noise.of("noise").normal(*shape)
    noise.of("posterior").normal(*shape)


if __name__ == "__main__":
    main()
