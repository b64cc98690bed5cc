"""How good the generated digits are: distances, accuracy, grids, one summary."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from sid_scale.codecs import Codec, open_codec
from sid_scale.config.run import load_config
from sid_scale.demo.digits import (
    NUM_CLASSES,
    class_accuracy,
    class_accuracy_real,
    pixel_features,
)
from sid_scale.demo.prepare import digits_for
from sid_scale.diffusion.few_step import generate
from sid_scale.diffusion.heun import denoiser, heun_sample, steps_for
from sid_scale.diffusion.noise import SeededNoise, keyed_seeds
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.generators.card import write_card
from sid_scale.measurements import DEMO_SUMMARY
from sid_scale.networks.folder import load_network
from sid_scale.thread_map import one_thread_each

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEACHER_EVALUATIONS = (17, 35, 63)
SEED = 0  # of the noise that teacher and students start from
OTHER_SEEDS = (4, 5)  # with SEED, those of student_fd_seeds; the presets were chosen with 1 to 3
BATCH = 128
RESAMPLINGS = 10  # of the real digits
NOTHING_LOST = 1e-9  # a Fréchet distance that is rounding alone
COLUMNS = 2 * NUM_CLASSES  # of samples.png


@dataclass(frozen=True)
class Judgement:
    """One set of images, one for each real digit and of its class."""

    images: Tensor  # uint8 (1797, 3, R, R)
    distance: float  # to all real digits
    unseen_half: float  # distance to the odd half, which no setting was chosen with


class Judge:
    """Holds the real digits, against which all else is compared."""

    def __init__(self, teacher: Path):
        self._teacher = load_network(teacher)
        self.codec: Codec = open_codec(self._teacher.codec, beside=teacher)
        self.codec.load(torch.device("cpu"))  # not in the middle, on many threads
        self.images, self.labels = digits_for(self._teacher.architecture, self.codec)
        features = pixel_features(self.images)
        self._features = features
        self._real = FeatureStatistics.of(features)
        self._unseen_half = FeatureStatistics.of(features[1::2])

    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images to the real digits, in 8x8 grey."""
        return frechet_distance(FeatureStatistics.of(pixel_features(images)), self._real)

    def codec_distance(self) -> float:
        """Distance of the real digits through the codec and back: samples cannot do better
        but by chance. Pixels lose nothing."""
        stored = self.codec.encode(self.images)
        noise = SeededNoise(keyed_seeds(SEED, "codec", torch.arange(len(stored))))
        latents = self.codec.sample(stored, noise.normal)
        return self.distance(self.codec.decode(latents))

    def resampled_distance(self) -> float:
        """Distance of real digits that are drawn anew, with replacement, from those of each class;
        a mean of several draws. Samples of a perfect generator differ from all real digits as
        much, so they cannot do better but by chance."""
        generator = np.random.default_rng(SEED)
        classes = self.labels.numpy()
        distances = []
        for _ in range(RESAMPLINGS):
            drawn = np.empty_like(self._features)
            for number in range(NUM_CLASSES):
                of_class = np.flatnonzero(classes == number)
                drawn[of_class] = self._features[generator.choice(of_class, len(of_class))]
            distances.append(frechet_distance(FeatureStatistics.of(drawn), self._real))
        return float(np.mean(distances))

    def halves_distance(self) -> float:
        """Distance of the even half of the real digits to the odd half."""
        even = FeatureStatistics.of(self._features[::2])
        return frechet_distance(even, self._unseen_half)

    def teacher(self, evaluations: int, seed: int = SEED) -> Judgement:
        """The teacher's samples at so many network evaluations, from noise of that seed."""
        network = self._teacher.build()

        def sample(noise: Tensor, labels: Tensor) -> Tensor:
            return heun_sample(denoiser(network, labels), noise, steps_for(evaluations))

        return self._judge(sample, seed)

    def student(self, folder: Path, seed: int = SEED) -> Judgement:
        """The samples of a generator folder, from noise of that seed."""
        generator = load_network(folder)
        network, provenance = generator.build(), generator.provenance

        def sample(noise: Tensor, labels: Tensor) -> Tensor:
            seeded = torch.Generator().manual_seed(seed)
            step_noise = torch.randn(provenance["steps"] - 1, *noise.shape, generator=seeded)
            return generate(network, noise, step_noise, labels, provenance["init_sigma"])

        return self._judge(sample, seed)

    def _judge(self, sample: Callable[[Tensor, Tensor], Tensor], seed: int) -> Judgement:
        shape, labels = self._teacher.architecture.sample_shape, self.labels

        @torch.no_grad()
        def images(numbers: Tensor) -> Tensor:
            noise = SeededNoise(keyed_seeds(seed, "evaluation", numbers))
            latents = sample(noise.normal(*shape), labels[numbers])
            return self.codec.decode(latents)

        judged = torch.cat(one_thread_each(images, torch.arange(len(labels)).split(BATCH)))
        statistics = FeatureStatistics.of(pixel_features(judged))
        return Judgement(
            judged,
            frechet_distance(statistics, self._real),
            frechet_distance(statistics, self._unseen_half),
        )


def judge_run(run: Path, began: float) -> dict[str, Any]:
    """Judges a finished run, writes summary.json, samples.png and curve.png beside it, and the
    generator's card anew.

    `began` is when the demo began, in seconds since 1970.
    """
    judge = Judge(Path(load_config(run / "config.yaml").teacher))
    teachers = {n: judge.teacher(n) for n in TEACHER_EVALUATIONS}
    snapshots = sorted(p for p in (run / "snapshots").iterdir() if p.name.isdigit())
    students = {int(p.name): judge.student(p) for p in snapshots}
    final = judge.student(run / "generator")
    others = [judge.student(run / "generator", seed) for seed in OTHER_SEEDS]
    images_seen = int(load_network(run / "generator").provenance["images_seen"])
    environment = json.loads((run / "environment.json").read_text())
    curve = {seen: student.distance for seen, student in students.items()}
    curve[images_seen] = final.distance
    summary = {
        **distances(teachers, final, others, curve),
        "codec_fd": judge.codec_distance(),
        "resampled_fd": judge.resampled_distance(),
        "halves_fd": judge.halves_distance(),
        "class_accuracy_student": class_accuracy(final.images, judge.labels),
        "class_accuracy_teacher_35": class_accuracy(teachers[35].images, judge.labels),
        "class_accuracy_real": class_accuracy_real(),
        "judged_images": len(judge.labels),
        "images_seen": images_seen,
        **{key: environment[key] for key in ("ranks", "zero_stage", "device", "compute_dtype")},
    }
    middle = min((s for s in students if s > 0), default=0)
    rows = {
        "real": judge.images,
        "teacher, 35 evaluations": teachers[35].images,
        "one step, before": students[0].images,
        f"one step, {middle:,} images": students[middle].images,
        f"one step, {images_seen:,} images": final.images,
    }
    summary["seconds"] = round(time.time() - began, 1)
    draw_samples(run / "samples.png", rows, judge.labels)
    draw_curve(run / "curve.png", curve, {n: t.distance for n, t in teachers.items()}, summary)
    (run / DEMO_SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    write_card(run / "generator")  # which the run wrote before anything was judged
    return summary


def distances(
    teachers: Mapping[int, Judgement],
    student: Judgement,
    others: Sequence[Judgement],
    curve: Mapping[int, float],
) -> dict[str, Any]:
    """The distances of summary.json.

    Args:
        teachers: by evaluations.
        student: at SEED.
        others: the same generator at the other seeds.
        curve: distance of each snapshot and of the generator, at SEED, by images seen.
    """
    return {
        **{f"teacher_fd_{n}": teacher.distance for n, teacher in teachers.items()},
        "student_fd": student.distance,
        "student_fd_seeds": [student.distance, *(other.distance for other in others)],
        **{f"teacher_fd_{n}_unseen_half": t.unseen_half for n, t in teachers.items()},
        "student_fd_unseen_half": student.unseen_half,
        "student_fd_start": curve[0],
        "student_fd_snapshots": {str(seen): curve[seen] for seen in sorted(curve)},
    }


def draw_samples(path: Path, rows: dict[str, Tensor], labels: Tensor) -> None:
    """A grid with a row for each set of images, the same digits in the same columns."""
    chosen = [int(i) for c in range(NUM_CLASSES) for i in (labels == c).nonzero()[:2]]
    figure, axes = plt.subplots(len(rows), 1, figsize=(COLUMNS * 0.62, len(rows) * 0.92))
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        strip = images[chosen].permute(2, 0, 3, 1).reshape(images.shape[2], -1, 3)
        axis.imshow(strip.numpy(), interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=9, pad=2)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curve(
    path: Path, curve: dict[int, float], teachers: dict[int, float], summary: dict[str, Any]
) -> None:
    """Fréchet distance of the one-step generator over images seen, and the teacher's lines."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    seen: Sequence[int] = sorted(curve)
    axis.plot(seen, [curve[s] for s in seen], "o-", color="black", label="one step (average)")
    for (n, distance), colour in zip(teachers.items(), ("C3", "C1", "C0"), strict=True):
        axis.axhline(distance, color=colour, ls="--", label=f"teacher, {n} evaluations")
    if summary["codec_fd"] > NOTHING_LOST:
        axis.axhline(summary["codec_fd"], color="grey", ls=":", label="real digits through the VAE")
    axis.set(yscale="log", xlabel="images seen", ylabel="Fréchet distance (8x8 grey)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
