"""Measures evaluation: `python tools/bench_evaluate.py [--generator DIR] [--num N]`, or with ranks
`torchrun --nproc_per_node R tools/bench_evaluate.py ...`.

Prints images per second of sampling, decoding, features and all three, what the figures take, what
each rank spends waiting; and beside it, in turns in the same run, the way of working of the
published code: one image is generated, then decoded, with all threads or the whole GPU. The
default generator is the demo's teacher in one step, with its VAE.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sid_scale.demo.prepare import TEACHER
from sid_scale.dtypes import COMPUTE, torch_dtype
from sid_scale.evaluate.blocks import Block, BlockStore, blocks_of
from sid_scale.evaluate.detectors import DetectorFiles, Detectors, open_detectors
from sid_scale.evaluate.engine import STAGES, make_blocks
from sid_scale.evaluate.features import (
    FDR,
    check_metrics,
    kind_of,
    needs_real_features,
    needs_statistics,
)
from sid_scale.evaluate.metrics.from_features import compute_metrics, sum_statistics
from sid_scale.evaluate.references.find import Reference
from sid_scale.evaluate.samplers import UNIFORM, GeneratorSampler, class_histogram, classes_of
from sid_scale.generators.folder import codec_of
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.networks.folder import load_network
from sid_scale.ranks import Ranks, joined_ranks, on_first_rank

INIT_SIGMA = 0.6  # of the digits' preset


def main() -> None:
    """Runs; the first rank prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", type=Path, metavar="DIR")
    parser.add_argument("--metrics", default="fd_pixels,fd_latents", metavar="LIST")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="in each round")
    parser.add_argument("--alone", type=int, default=48, metavar="N", help="one at a time, a rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=COMPUTE, default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--inception", type=Path)
    parser.add_argument("--dinov2", type=Path)
    options = parser.parse_args()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    asked = check_metrics(options.metrics.split(","))
    metrics = [m for m in asked if m != FDR and not needs_real_features(m)]
    with joined_ranks() as ranks, tempfile.TemporaryDirectory() as own:
        folder = on_first_rank(lambda: own)  # of the first rank: all write there
        generator = open_generator(options).to(ranks.device)
        generator.load_codec()
        files = DetectorFiles(options.inception, options.dinov2)
        detectors = open_detectors(metrics, files, ranks.device)
        rounds = [
            one_round(generator, detectors, metrics, options, Path(folder) / str(number), ranks)
            for number in range(-1, options.rounds)  # the first warms up
        ][1:]
        if ranks.is_first:
            print(json.dumps(summary(rounds, options, ranks), indent=2))


def open_generator(options: argparse.Namespace) -> OneStepGenerator:
    """The generator to measure."""
    if options.generator is not None:
        return OneStepGenerator.from_pretrained(
            options.generator, dtype=torch_dtype(options.dtype), batch_size=options.batch_size
        )
    saved = load_network(TEACHER)
    network = saved.build(torch_dtype(options.dtype))
    codec = codec_of(saved, TEACHER)
    return OneStepGenerator(network, codec, INIT_SIGMA, batch_size=options.batch_size)


def one_round(
    generator: OneStepGenerator,
    detectors: Detectors,
    metrics: list[str],
    options: argparse.Namespace,
    folder: Path,
    ranks: Ranks,
) -> dict[str, Any]:
    """Both ways of working, one after the other: seconds of every rank. Collective."""
    store = BlockStore(folder)
    on_first_rank(store.remove)
    blocks = blocks_of(0, options.images, -(-options.images // (2 * ranks.world_size)))
    began = time.perf_counter()
    watch = make_blocks(
        GeneratorSampler(generator),
        class_histogram(UNIFORM, generator.network.architecture.label_dim),
        detectors.extract,
        blocks,
        store,
        ranks,
        quiet=True,
    )
    assert watch is not None
    whole = time.perf_counter() - began
    mine = {
        **watch.seconds,
        "all": whole,
        "figures": figures_seconds(metrics, store, blocks, ranks),
    }
    dist.barrier()
    mine["alone"] = alone_seconds(generator, options.alone)
    told: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(told, mine)
    return {stage: [seconds[stage] for seconds in told] for stage in mine}


def figures_seconds(
    metrics: list[str], store: BlockStore, blocks: list[Block], ranks: Ranks
) -> float:
    """What the figures take once the features are there; compared with themselves."""
    references = {
        metric: Reference("", {}, sum_statistics(store, blocks, kind_of(metric), ranks))
        for metric in metrics
        if needs_statistics(metric)
    }
    began = time.perf_counter()
    compute_metrics(metrics, references, store, blocks, ranks)
    return time.perf_counter() - began


@torch.no_grad()
def alone_seconds(generator: OneStepGenerator, num: int) -> float:
    """Seconds in which `num` images are generated and decoded one after the other."""
    histogram = class_histogram(UNIFORM, generator.network.architecture.label_dim)
    classes = classes_of(range(num), histogram)
    began = time.perf_counter()
    for seed, label in enumerate(classes):
        latents = generator.latents_together([label], [seed])
        generator.codec.decode(latents).cpu()
    return time.perf_counter() - began


def summary(
    rounds: list[dict[str, Any]], options: argparse.Namespace, ranks: Ranks
) -> dict[str, Any]:
    """Medians over the rounds; rates are of all ranks together."""

    def slowest(stage: str) -> float:
        return statistics.median(max(r[stage]) for r in rounds)

    def rate(num: int, seconds: float) -> float:
        return _five_digits(num / seconds)

    made = [max(a + b for a, b in zip(r["sampling"], r["decoding"])) for r in rounds]
    alone = [ranks.world_size * options.alone / max(r["alone"]) for r in rounds]
    ratios = [options.images / seconds / theirs for seconds, theirs in zip(made, alone)]
    return {
        "images": options.images,
        "rounds": options.rounds,
        "ranks": ranks.world_size,
        "threads_per_rank": torch.get_num_threads(),
        "device": ranks.device.type,
        "metrics": options.metrics,
        "images_per_second": {
            **{stage: rate(options.images, slowest(stage)) for stage in STAGES[:3]},
            "all": rate(options.images, slowest("all")),
            "generated_and_decoded": rate(options.images, statistics.median(made)),
            "generated_and_decoded_one_at_a_time": _five_digits(statistics.median(alone)),
        },
        "ratio_to_one_at_a_time": {
            "median": _five_digits(statistics.median(ratios)),
            "lowest": _five_digits(min(ratios)),
            "highest": _five_digits(max(ratios)),
        },
        "seconds_for_the_figures": round(slowest("figures"), 3),
        "seconds_waiting_by_rank": [
            round(statistics.median(column), 3) for column in zip(*(r["waiting"] for r in rounds))
        ],
    }


def _five_digits(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    main()
