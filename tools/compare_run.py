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
from pathlib import Path
from typing import Any

from compare_job import Job, config_of, described, result_file
from compare_judge import figures, generator_images, real_digits

from sid_scale.atomic import atomic_write
from sid_scale.distill.build import Run
from sid_scale.distill.evaluation import NoEvaluation
from sid_scale.distill.loop import train
from sid_scale.distill.telemetry import Telemetry
from sid_scale.ranks import joined_ranks


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
        labels, points = real_digits(job.half)[1], []
        for point in clocks[0].points:
            snapshot = Path(config.run_dir) / "snapshots" / f"{point['images']:012.0f}"
            images = generator_images(snapshot, labels, job.noise_seed)
            points.append({**point, **figures(images, labels, job.half, ranks)})
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
    with atomic_write(result_file(work, job)) as partial:
        partial.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
