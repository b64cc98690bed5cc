"""What is evaluated, seen as one thing: classes and seeds in, latents out.

A seed decides the noise and, by a hash, the class: uniform over the classes as in EDM2's protocol,
and the same for every network, so that generator and teacher are shown the same tasks.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_scale.codecs import VAE_WEIGHTS, Codec, VAECodec
from sid_scale.diffusion.heun import Denoise, denoiser, guided, heun_sample
from sid_scale.diffusion.noise import SeededNoise, keyed_seed
from sid_scale.generators.folder import GeneratorError, codec_of
from sid_scale.generators.generator import MAX_SEED, OneStepGenerator
from sid_scale.networks.edm2.layers import store_weights_in
from sid_scale.networks.edm2.network import EDM2, EDM2Config
from sid_scale.networks.folder import WEIGHTS, load_network, sha256
from sid_scale.ranks import on_first_rank

CPU_BATCH = 16  # samples; fixed, so that a sample's company never depends on who computes it


class Sampler(Protocol):
    """What every sampler offers."""

    @property
    def codec(self) -> Codec:
        """Turns its latents into images."""

    @property
    def architecture(self) -> EDM2Config:
        """Of its network."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def batch(self) -> int:
        """Samples that it computes at once."""

    @property
    def together(self) -> bool:
        """Whether all ranks have to sample at the same time, as with weights in shards."""

    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """One batch of samples, (N, C, h, w) float32."""


class GeneratorSampler:
    """A distilled generator; every rank has a copy."""

    together = False

    def __init__(self, generator: OneStepGenerator, steps: int | None = None):
        self._generator = generator
        self.steps = generator.steps if steps is None else steps
        self.codec, self.architecture = generator.codec, generator.network.config
        self.device = generator.device
        self.batch = _batch(generator.device, generator.batch_size)

    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        return self._generator.latents_together(classes, seeds, self.steps)


class TeacherSampler:
    """A teacher with EDM's deterministic sampler, guided or not; every rank has a copy."""

    together = False

    def __init__(
        self,
        network: EDM2,
        codec: Codec,
        steps: int,
        *,
        guide: EDM2 | None = None,
        guidance: float = 1.0,
        batch_size: int,
        device: torch.device,
    ):
        self._network, self._guide = network.to(device), None if guide is None else guide.to(device)
        self.codec, self.architecture, self.device = codec, network.config, device
        self.steps, self.guidance = steps, guidance
        self.batch = _batch(device, batch_size)

    @torch.no_grad()
    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        noise = SeededNoise(seeds, self.device).normal(*image_shape(self.architecture))
        denoise = self._denoiser(self._network, classes)
        if self._guide is not None:
            denoise = guided(denoise, self._denoiser(self._guide, classes), self.guidance)
        return heun_sample(denoise, noise, self.steps)

    def _denoiser(self, network: EDM2, classes: Sequence[int]) -> Denoise:
        known = network.config.label_dim  # 0: an unconditional guide
        labels = F.one_hot(torch.tensor(classes), known).float().to(self.device) if known else None
        return denoiser(network, labels)


def open_teacher(folder: Path, dtype: torch.dtype, vae: Path | None = None) -> tuple[EDM2, Codec]:
    """A teacher, or a guide, ready to sample, and its codec.

    Raises:
        CheckpointError, CodecError: the folder cannot be used.
        GeneratorError: it holds a generator.
    """
    saved = load_network(folder)
    if "init_sigma" in saved.origin:
        raise GeneratorError(
            f"{folder} holds a generator, not a teacher: `python -m sid_scale.evaluate run "
            f"--generator {folder}` evaluates it"
        )
    network = saved.build(dtype).requires_grad_(False)
    store_weights_in(dtype, network)
    return network, codec_of(saved, folder, vae)


def check_guide(teacher: EDM2Config, guide: EDM2Config, folder: Path) -> None:
    """Makes sure that a guide sees the images of its teacher, and its classes or none.

    Raises:
        GeneratorError: says how they differ.
    """
    if image_shape(teacher) != image_shape(guide):
        raise GeneratorError(
            f"guide {folder} makes images {image_shape(guide)}, the teacher {image_shape(teacher)}"
        )
    if guide.label_dim not in (0, teacher.label_dim):
        raise GeneratorError(
            f"guide {folder} knows {guide.label_dim} classes, the teacher {teacher.label_dim}; "
            "a guide knows the same or none"
        )


def classes_of(seeds: Sequence[int], label_dim: int) -> list[int]:
    """A class for each seed, uniform over all of them and a function of the seed alone."""
    return [keyed_seed(0, "evaluation class", seed) % max(1, label_dim) for seed in seeds]


def check_seeds(first: int, num: int) -> None:
    """Raises GeneratorError if some of the seeds `first`, ... `first + num - 1` do not exist."""
    if first < 0 or first + num - 1 > MAX_SEED:
        raise GeneratorError(f"seeds {first} to {first + num - 1} are not in 0 to 2**32 - 1")


def image_shape(architecture: EDM2Config) -> tuple[int, int, int]:
    """(C, h, w) of what a network makes."""
    size = architecture.img_resolution
    return architecture.img_channels, size, size


def describe_codec(codec: Codec) -> dict[str, Any]:
    """What decoded images depend on in a codec, wherever its files lie."""
    description = {k: v for k, v in codec.describe().items() if k != "vae"}
    if isinstance(codec, VAECodec):
        weights = codec.folder / VAE_WEIGHTS  # fd_latents alone needs none
        description["vae_sha256"] = sha256(weights) if weights.is_file() else None
        description["vae_precision"] = str(codec.precision).removeprefix("torch.")
    return description


def describe_network(folder: Path, architecture: EDM2Config) -> dict[str, Any]:
    """What samples depend on in a network folder. Collective: one rank reads it."""
    return {
        "weights_sha256": on_first_rank(lambda: sha256(folder / WEIGHTS)),
        "architecture": dataclasses.asdict(architecture),
    }


def _batch(device: torch.device, batch_size: int) -> int:
    return CPU_BATCH if device.type == "cpu" else batch_size
