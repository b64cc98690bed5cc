"""How `compare_methods.py` judges digits: against one half of the real ones."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sid_scale.codecs import open_codec
from sid_scale.demo.digits import SCAN_RESOLUTION, class_accuracy, digit_images, pixel_features
from sid_scale.diffusion.few_step import generate, generator_inputs
from sid_scale.diffusion.heun import denoiser, heun_sample, steps_for
from sid_scale.diffusion.noise import SeededNoise, keyed_seeds
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.evaluate.metrics.neighbours import neighbour_metrics
from sid_scale.networks.folder import load_network
from sid_scale.ranks import Ranks

BATCH = 128


def real_digits(half: int) -> tuple[Tensor, Tensor]:
    """Scans and labels of the even (0) or the odd half (1)."""
    images, labels = digit_images(SCAN_RESOLUTION)
    return images[half::2], labels[half::2]


def figures(images: Tensor, labels: Tensor, half: int, ranks: Ranks) -> dict[str, float]:
    """Of uint8 `images` (N, 3, R, R) of classes `labels` (N,), beside one half of the real digits.

    Collective.
    """
    real, made = pixel_features(real_digits(half)[0]), pixel_features(images)
    distance = frechet_distance(FeatureStatistics.of(made), FeatureStatistics.of(real))
    accuracy = class_accuracy(images, labels)
    shares = neighbour_metrics(real, made, ranks)
    found = {"distance": distance, "accuracy": accuracy}
    found |= {name: shares[name] for name in ("precision", "recall")}
    return {name: round(value, 4) for name, value in found.items()}


def generator_images(folder: Path, labels: Tensor, seed: int) -> Tensor:
    """What the generator in `folder` makes of classes `labels` (N,): uint8 (N, 3, R, R)."""
    generator = load_network(folder)
    network, how = generator.build(), generator.provenance
    shape = generator.architecture.sample_shape

    def sample(noise: SeededNoise, classes: Tensor) -> Tensor:
        z, step_noise = generator_inputs(noise, noise, shape, how["steps"])
        return generate(network, z, step_noise, classes, how["init_sigma"])

    return _decoded(folder, sample, labels, seed)


def teacher_images(folder: Path, evaluations: int, labels: Tensor, seed: int) -> Tensor:
    """The same of a teacher, at so many evaluations of it an image."""
    teacher = load_network(folder)
    network, shape = teacher.build(), teacher.architecture.sample_shape

    def sample(noise: SeededNoise, classes: Tensor) -> Tensor:
        z = noise.normal(*shape)
        return heun_sample(denoiser(network, classes), z, steps_for(evaluations))

    return _decoded(folder, sample, labels, seed)


@torch.no_grad()
def _decoded(
    folder: Path, sample: Callable[[SeededNoise, Tensor], Tensor], labels: Tensor, seed: int
) -> Tensor:
    codec = open_codec(load_network(folder).codec, beside=folder)
    images = []
    for numbers in torch.arange(len(labels)).split(BATCH):
        noise = SeededNoise(keyed_seeds(seed, "comparison", numbers))
        images.append(codec.decode(sample(noise, labels[numbers])))
    return torch.cat(images)
