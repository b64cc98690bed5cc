"""One run of `compare_methods.py`, in a process of its own: trains, judges snapshots, and writes
one JSON file.

The clock runs while the run trains; judging comes after. Its seconds are those of the process's
threads at work: other programs on the machine change the time by the clock on the wall.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compare_job import Job, config_of, described
from torch import Tensor

from sid_scale.atomic import atomic_write
from sid_scale.codecs import open_codec
from sid_scale.demo.digits import SCAN_RESOLUTION, class_accuracy, digit_images, pixel_features
from sid_scale.diffusion.few_step import generate, generator_inputs
from sid_scale.diffusion.noise import SeededNoise, keyed_seeds
from sid_scale.distill.build import Run
from sid_scale.distill.evaluation import NoEvaluation
from sid_scale.distill.loop import train
from sid_scale.distill.telemetry import Telemetry
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.evaluate.metrics.precision_recall import precision_and_recall
from sid_scale.networks.folder import load_network
from sid_scale.ranks import Ranks, joined_ranks

BATCH = 128  # of judged images


class Clock(NoEvaluation):
    """Takes the time of training at each snapshot."""

    def __init__(self, run: Run):
        self._run, self._began = run, (time.process_time(), time.perf_counter())
        self.points: list[dict[str, float]] = []

    def measure_if_due(
        self, telemetry: Telemetry, *, finished: bool, stopped: Callable[[], bool]
    ) -> bool:
        run = self._run
        if run.is_due(run.config.snapshot.every_images):
            cpu, wall = time.process_time(), time.perf_counter()
            self.points.append(
                {
                    "images": run.progress.images_seen,
                    "seconds": round(cpu - self._began[0], 2),
                    "wall_seconds": round(wall - self._began[1], 2),
                }
            )
        return False


@dataclass(frozen=True)
class Judge:
    """Half of the real digits, and how generated ones are compared with it."""

    job: Job
    ranks: Ranks

    def figures(self, folder: Path) -> dict[str, float]:
        """Of the generator in `folder`."""
        job = self.job
        real, labels = (part[job.half :: 2] for part in digit_images(SCAN_RESOLUTION))
        images = generated(folder, labels, job.noise_seed)
        real_features, features = pixel_features(real), pixel_features(images)
        distance = frechet_distance(
            FeatureStatistics.of(features), FeatureStatistics.of(real_features)
        )
        shares = precision_and_recall(real_features, features, self.ranks)
        accuracy = class_accuracy(images, labels)
        figures = {"distance": distance, "accuracy": accuracy, **shares}
        return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def generated(folder: Path, labels: Tensor, seed: int) -> Tensor:
    """uint8 images (N, 3, R, R) of the generator in `folder`, of classes `labels` (N,)."""
    network_folder = load_network(folder)
    network, how = network_folder.build(), network_folder.provenance
    codec = open_codec(network_folder.codec, beside=folder)
    images = []
    for numbers in torch.arange(len(labels)).split(BATCH):
        noise = SeededNoise(keyed_seeds(seed, "comparison", numbers))
        shape = network_folder.architecture.sample_shape
        z, step_noise = generator_inputs(noise, noise, shape, how["steps"])
        latents = generate(network, z, step_noise, labels[numbers], how["init_sigma"])
        images.append(codec.decode(latents))
    return torch.cat(images)


def measure(job: Job, work: Path) -> dict[str, Any]:
    """Trains and judges; what the result file holds."""
    config = config_of(job, work)
    clocks: list[Clock] = []

    def open_clock(run: Run) -> Clock:
        clocks.append(Clock(run))
        return clocks[0]

    with joined_ranks() as ranks:
        before = resident_megabytes("VmRSS")
        train(config, ranks, open_evaluation=open_clock)
        peak = resident_megabytes("VmHWM") - before
        judge = Judge(job, ranks)
        snapshots = Path(config.run_dir) / "snapshots"
        points = [
            {**point, **judge.figures(snapshots / f"{point['images']:012.0f}")}
            for point in clocks[0].points
        ]
    return {**described(job), "points": points, "peak_megabytes": round(peak, 1)}


def resident_megabytes(which: str) -> float:
    """Memory of this process: VmRSS now, VmHWM at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024 / 1e6


def main() -> int:
    """`compare_run.py WORK JOB`, JOB the JSON of a `Job`."""
    work, job = Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))
    shutil.rmtree(work / job.name, ignore_errors=True)
    began = time.perf_counter()
    result = measure(job, work)
    shutil.rmtree(work / job.name / "checkpoints")
    print(f"{time.perf_counter() - began:.1f} s in all")
    with atomic_write(work / f"{job.name}.json") as partial:
        partial.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
