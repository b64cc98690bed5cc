"""Evaluation while training: the averaged generator, where it is, by all ranks.

The average changes places with the masters for the time (`ShardedEMA.applied`), so no second copy
of anything is made; at ZeRO 3 the ranks sample in step. Nothing of the training is touched: not
its random numbers, not its data. What the best generator so far was worth is read from
metrics.jsonl, which a resumed run cuts back to the place where it goes on; evaluation.json says
with what it was measured, and from where on: figures of other references, detectors or samples
are no match for these.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_scale.codecs import VAECodec, fetch_once_a_node
from sid_scale.diffusion.few_step import generate, generator_inputs
from sid_scale.diffusion.noise import SeededNoise
from sid_scale.distill.build import Run
from sid_scale.distill.evaluation import Evaluation, NoEvaluation
from sid_scale.distill.outputs import write_generator, write_text
from sid_scale.distill.telemetry import Telemetry
from sid_scale.dtypes import torch_dtype
from sid_scale.evaluate.blocks import BLOCK, BlockStore, blocks_of
from sid_scale.evaluate.detectors import DetectorFiles, open_detectors
from sid_scale.evaluate.engine import make_blocks
from sid_scale.evaluate.features import (
    HIGHER_IS_BETTER,
    MetricError,
    check_counts,
    check_metrics,
    need_images,
    with_fdr_members,
)
from sid_scale.evaluate.job import smoke_test
from sid_scale.evaluate.metrics.from_features import compute_metrics
from sid_scale.evaluate.references.find import find_references, real_counts
from sid_scale.evaluate.samplers import UNIFORM, check_seeds, class_histogram
from sid_scale.generators.folder import adopt_class_names, adopt_vae
from sid_scale.generators.generator import condition_of
from sid_scale.measurements import BASIS, PREFIX, read_basis
from sid_scale.methods import GENERATOR
from sid_scale.metrics_log import read_metrics
from sid_scale.networks.compile_blocks import sampling
from sid_scale.ranks import on_first_rank
from sid_scale.zero import retention
from sid_scale.zero.saved import MANIFEST

BEST_GENERATOR = "best_generator"


class AverageSampler:
    """The averaged generator inside its engine; to be used while `run.ema.applied()`."""

    together = True

    def __init__(self, run: Run):
        self._run = run
        self.codec, self.device = run.codec, run.ranks.device
        self.architecture = run.architectures[GENERATOR]
        self.batch = run.config.micro_batch

    @torch.no_grad()
    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """One batch of samples, (N, C, h, w) float32. Collective at ZeRO 3."""
        run = self._run
        noise = SeededNoise(seeds, self.device)
        z, step_noise = generator_inputs(noise, noise, run.image_shape, run.config.steps)
        condition = condition_of(classes, self.architecture, self.device)
        return generate(run.generator.module, z, step_noise, condition, run.config.init_sigma)


def open_evaluation(run: Run) -> Evaluation:
    """What a run's `evaluation` asks for; it may be nothing. Collective.

    Raises:
        SidScaleError: an evaluation could not work; says why.
    """
    return TrainingEvaluation(run) if run.config.evaluation.every_images else NoEvaluation()


class TrainingEvaluation:
    """The evaluation of one run, see `Evaluation`."""

    def __init__(self, run: Run):
        """Opens detectors and references, and tries them out. Collective.

        Raises:
            SidScaleError: an evaluation could not work; says why.
        """
        self._run, self._settings = run, run.config.evaluation
        self._offered: int | None = None  # checkpoint that was last compared with the best
        settings = self._settings
        files = DetectorFiles(
            _path(settings.inception),
            _path(settings.dinov2),
            {name: Path(file) for name, file in settings.encoders.items()},
        )
        metrics = with_fdr_members(check_metrics(settings.metrics, settings.encoders), files.kinds)
        self._best_by = settings.best_by or metrics[0]
        if self._best_by not in metrics:
            raise MetricError(
                f"evaluation.best_by: {self._best_by} is none of evaluation.metrics, "
                f"{', '.join(metrics)}"
            )
        check_seeds(settings.first_seed, settings.num)
        self._metrics = metrics
        self._sampler = AverageSampler(run)
        label_dim = self._sampler.architecture.label_dim
        uniform = settings.labels == UNIFORM
        self._histogram = class_histogram(UNIFORM, label_dim) if uniform else run.histogram
        if isinstance(run.codec, VAECodec):
            run.codec.dtype = torch_dtype(settings.vae_dtype)
        self._detectors = open_detectors(metrics, files, run.ranks.device)
        if need_images(self._detectors.extract):
            fetch_once_a_node(run.codec)
            run.codec.check()
        self._references = find_references(metrics, settings.reference)
        check_counts(metrics, settings.num, real_counts(self._references))
        smoke_test(self._sampler, self._detectors, self._references)
        # images seen -> figure that decides which generator is the best
        self._values = on_first_rank(self._earlier_values)

    def _earlier_values(self) -> dict[int, float]:
        settings, run = self._settings, self._run
        basis = {
            "num": settings.num,
            "first_seed": settings.first_seed,
            "references": {metric: r.sha256 for metric, r in self._references.items()},
            "detectors": self._detectors.hashes,
            "vae_dtype": settings.vae_dtype,
            "labels": settings.labels,
        }
        return comparable_metrics(run.folder, self._best_by, basis, run.progress.images_seen)

    def measure_if_due(
        self, telemetry: Telemetry, *, finished: bool, stopped: Callable[[], bool]
    ) -> bool:
        run, seen = self._run, self._run.progress.images_seen
        if not (finished or run.is_due(self._settings.every_images)):
            return False
        began = time.perf_counter()
        figures = self._measure(stopped)
        seconds = time.perf_counter() - began
        telemetry.pause(seconds)
        if figures is None:
            telemetry.say(f"evaluation at {seen:,} images given up: the run is to stop")
            return False
        value = figures[self._best_by]
        is_best = math.isfinite(value)
        if is_best:
            is_best = all(self._is_better(value, other) for other in self._values.values())
            self._values[seen] = value
        shown = "  ".join(f"{metric} {figure:.6g}" for metric, figure in figures.items())
        telemetry.note({f"{PREFIX}{metric}": figure for metric, figure in figures.items()})
        telemetry.note({"evaluation_seconds": seconds})
        telemetry.say(
            f"evaluation at {seen:,} images: {shown}  ({self._settings.num:,} images, "
            f"{seconds:.1f} s){'  best so far' if is_best else ''}"
        )
        if is_best:
            self._write_best(telemetry)
        return True

    def link_best(self) -> None:
        run, folder = self._run, self._run.folder / "checkpoints"
        seen = run.saved_at
        if seen in (None, self._offered) or not run.ranks.is_first:
            return
        whole = {int(p.name): p for p in retention.checkpoints(folder) if (p / MANIFEST).is_file()}
        evaluated = {self._values[at]: p for at, p in whole.items() if at in self._values}
        if evaluated:
            best = (max if self._best_by in HIGHER_IS_BETTER else min)(evaluated)
            retention.link(folder, retention.BEST, evaluated[best])
        if seen in whole:  # else it is still being written
            self._offered = seen

    def _measure(self, stopped: Callable[[], bool]) -> dict[str, float] | None:
        run, settings = self._run, self._settings
        store = BlockStore(run.folder / ".evaluation")
        micro_batches = -(-settings.num // (run.ranks.world_size * self._sampler.batch))
        size = min(BLOCK, micro_batches * self._sampler.batch)
        blocks = blocks_of(settings.first_seed, settings.num, size)
        on_first_rank(store.remove)
        with run.ema.applied(), sampling(run.generator.module):
            watch = make_blocks(
                self._sampler,
                self._histogram,
                self._detectors.extract,
                blocks,
                store,
                run.ranks,
                stopped=stopped,
                quiet=True,
            )
        figures = None
        if watch is not None:
            figures = compute_metrics(self._metrics, self._references, store, blocks, run.ranks)
        on_first_rank(store.remove_whole)
        return figures

    def _is_better(self, value: float, other: float) -> bool:
        return value > other if self._best_by in HIGHER_IS_BETTER else value < other

    def _write_best(self, telemetry: Telemetry) -> None:
        run, folder = self._run, self._run.folder / BEST_GENERATOR
        write_generator(run, folder)
        if run.ranks.is_first:
            try:
                adopt_vae(folder, run.codec)
                adopt_class_names(folder, Path(run.config.teacher))
            except (OSError, ValueError) as error:  # the network is there; a run must go on
                telemetry.say(f"{folder}: no VAE or class names ({error})")


def _path(setting: str | None) -> Path | None:
    return None if setting is None else Path(setting)


def comparable_metrics(
    run: Path, metric: str, basis: Mapping[str, Any], images_seen: int
) -> dict[int, float]:
    """Images seen -> a metric, of the figures in metrics.jsonl that were measured with `basis`,
    as all will be from `images_seen` on. For one rank to call; says so in evaluation.json.

    Raises:
        OutputError: the disk is full, the folder read-only ...
    """
    before = read_basis(run / BASIS)
    same = before.get("measured_with") == basis
    since = min(before["since_images"], images_seen) if same else images_seen
    now = {"since_images": since, "measured_with": basis}
    if now != before:
        write_text(run / BASIS, json.dumps(now, indent=2) + "\n")
    return {seen: figure for seen, figure in _logged_metrics(run, metric).items() if seen > since}


def _logged_metrics(run: Path, metric: str) -> dict[int, float]:
    """Images seen -> a metric, as metrics.jsonl has it."""
    records = read_metrics(run)
    key = f"{PREFIX}{metric}"
    return {r["images_seen"]: r[key] for r in records if r.get(key) is not None}
