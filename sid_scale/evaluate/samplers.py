"""What is evaluated, seen as one thing: classes and seeds in, latents out.

A seed decides the noise and, by a hash, the class: uniform over the classes as in EDM's and SiD's
protocol of published samples, or as often as in a data set. Both are the same for every network, so
that generator and teacher are shown the same tasks.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sid_scale.codecs import VAE_WEIGHTS, Codec, VAECodec
from sid_scale.data.labels import LabelsError, label_histogram
from sid_scale.data.remote import local_path
from sid_scale.data.shards import ShardError, load_index
from sid_scale.diffusion.heun import Denoise, SamplerSettings, denoiser, edm_sample, guided
from sid_scale.diffusion.noise import SeededNoise, keyed_seed
from sid_scale.generators.folder import GeneratorError, codec_of
from sid_scale.generators.generator import MAX_SEED, OneStepGenerator, condition_of
from sid_scale.hashing import sha256_file
from sid_scale.networks import Architecture, describe_architecture
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.folder import WEIGHTS, load_network
from sid_scale.ranks import on_first_rank

UNIFORM = "uniform"
CPU_BATCH = 16  # samples; fixed, so that a sample's batch does not depend on the ranks


class Sampler(Protocol):
    """What every sampler offers."""

    @property
    def codec(self) -> Codec:
        """Turns its latents into images."""

    @property
    def architecture(self) -> Architecture:
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
        self.codec, self.architecture = generator.codec, generator.network.architecture
        self.device = generator.device
        self.batch = _batch(generator.device, generator.batch_size)

    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        given = classes if self.architecture.label_dim else None
        return self._generator.latents_together(given, seeds, self.steps)


class TeacherSampler:
    """A teacher with EDM's samplers, guided or not; every rank has a copy.

    The noise of an image, at the start and between the steps, is a function of its seed.
    """

    together = False

    def __init__(
        self,
        network: Denoiser,
        codec: Codec,
        settings: SamplerSettings,
        *,
        guide: Denoiser | None = None,
        guidance: float = 1.0,
        batch_size: int,
        device: torch.device,
    ):
        self._network, self._guide = network.to(device), None if guide is None else guide.to(device)
        self.codec, self.architecture, self.device = codec, network.architecture, device
        self.settings, self.guidance = settings, guidance
        self.batch = _batch(device, batch_size)

    @torch.no_grad()
    def latents(self, classes: Sequence[int], seeds: Sequence[int]) -> Tensor:
        noise = SeededNoise(seeds, self.device)
        denoise = self._denoiser(self._network, classes)
        if self._guide is not None:
            denoise = guided(denoise, self._denoiser(self._guide, classes), self.guidance)
        shape = self.architecture.sample_shape
        return edm_sample(denoise, lambda: noise.normal(*shape), self.settings)

    def _denoiser(self, network: Denoiser, classes: Sequence[int]) -> Denoise:
        return denoiser(network, condition_of(classes, network.architecture, self.device))


def open_teacher(
    folder: Path, dtype: torch.dtype, vae: Path | None = None
) -> tuple[Denoiser, Codec]:
    """A teacher, or a guide, ready to sample, and its codec.

    Raises:
        CheckpointError, CodecError: the folder cannot be used.
        GeneratorError: it holds a generator.
    """
    saved = load_network(folder)
    if "init_sigma" in saved.provenance:
        raise GeneratorError(
            f"{folder} holds a generator, not a teacher: `sid-scale evaluate run "
            f"--generator {folder}` evaluates it"
        )
    network = saved.build(dtype)
    return network, codec_of(saved, folder, vae)


def class_histogram(labels: str, label_dim: int) -> list[int]:
    """How often each class is drawn, (label_dim,); [] for a network that knows no classes.

    Args:
        labels: "uniform"; shards, or their URL: as often as there; or a text file of class
            indices: as often as there.

    Raises:
        LabelsError: it is none of these, or of other classes.
    """
    file = local_path(labels)
    if labels == UNIFORM or label_dim == 0 or (file is not None and file.is_file()):
        return label_histogram(labels, label_dim, None)
    try:
        index = load_index(labels)
    except ShardError as error:
        raise LabelsError(
            f"labels: {labels} is neither {UNIFORM}, shards nor a text file of classes ({error})"
        ) from error
    if index.num_classes != label_dim:
        raise LabelsError(
            f"labels: {labels} holds {index.num_classes} classes, the network knows {label_dim}"
        )
    return list(index.class_histogram)


def describe_histogram(histogram: Sequence[int]) -> str:
    """Which classes are drawn for the seeds, in a word: "uniform", or the histogram's SHA-256."""
    if all(count == 1 for count in histogram):
        return UNIFORM
    return hashlib.sha256(json.dumps(list(histogram)).encode()).hexdigest()


def classes_of(seeds: Sequence[int], histogram: Sequence[int]) -> list[int]:
    """A class for each seed, as often as `histogram` (K,) says and a function of the seed alone;
    all 0 without classes."""
    cumulative = list(accumulate(histogram)) or [1]
    drawn = (keyed_seed(0, "evaluation class", seed) % cumulative[-1] for seed in seeds)
    return [bisect_right(cumulative, number) for number in drawn]


def check_seeds(first: int, num: int) -> None:
    """Raises GeneratorError if some of the seeds `first`, ... `first + num - 1` do not exist."""
    if first < 0 or first + num - 1 > MAX_SEED:
        raise GeneratorError(f"seeds {first} to {first + num - 1} are not in 0 to 2**32 - 1")


def describe_codec(codec: Codec) -> dict[str, Any]:
    """What decoded images depend on in a codec, whatever its files' place."""
    description = {k: v for k, v in codec.describe().items() if k != "vae"}
    if isinstance(codec, VAECodec):
        weights = (codec.place or codec.folder) / VAE_WEIGHTS  # fd_latents alone needs none
        description["vae_sha256"] = sha256_file(weights) if weights.is_file() else None
        description["vae_dtype"] = str(codec.dtype).removeprefix("torch.")
    return description


def describe_network(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """What samples depend on in a network folder. Collective: one rank reads it."""
    return {
        "weights_sha256": on_first_rank(lambda: sha256_file(folder / WEIGHTS)),
        "architecture": describe_architecture(architecture),
    }


def _batch(device: torch.device, batch_size: int) -> int:
    return CPU_BATCH if device.type == "cpu" else batch_size
