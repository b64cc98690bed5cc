"""A distilled generator at work: classes and seeds in, images out.

A sample is a function of (weights, class, seed, steps, dtype) and of nothing else. Its noise is
drawn from its seed alone, and on a CPU it is also computed alone, on one thread: oneDNN and MKL
take other kernels for other batch sizes and thread counts, which round differently. So there the
same seed gives the same bits beside any others, on any number of threads and processes, on
machines with the same instruction set. As many samples as there are threads (OMP_NUM_THREADS) are
computed at once. On CUDA samples go through in batches, and the others in a batch show in the
rounding.
"""

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sid_scale.codecs import Codec, CodecError, IdentityCodec
from sid_scale.diffusion.few_step import generate, generator_inputs
from sid_scale.diffusion.noise import SeededNoise
from sid_scale.dtypes import COMPUTE
from sid_scale.generators.diffusers_folder import write_diffusers_folder
from sid_scale.generators.folder import GeneratorError, codec_of, trained_for
from sid_scale.generators.interpolation import slerp
from sid_scale.hub.folders import local_folder
from sid_scale.networks import Architecture
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.folder import CONFIG, load_network
from sid_scale.thread_map import one_thread_each

T = TypeVar("T")

RGB = 3
BATCH = 32  # samples that a GPU computes at once
MAX_SEED = 2**32 - 1  # larger ones would draw the noise of smaller ones


class Samples(NamedTuple):
    """What to make, checked."""

    classes: list[int]  # all 0 if the generator knows no classes
    seeds: list[int]
    steps: int


class OneStepGenerator:
    """Makes images of classes in one step, or a few (`steps`).

        generator = OneStepGenerator.from_pretrained("runs/demo/generator")  # or "user/repo"
        images = generator.generate(class_labels=[3, 3, 7], seeds=[0, 1, 0])

    Args:
        network: the generator, in evaluation mode.
        codec: turns its latents into images.
        init_sigma: noise level that it was trained to start from.
        steps: number of steps that it was trained for.
        batch_size: samples that a GPU computes at once.
        folder: where it was loaded from; None: nowhere.
    """

    def __init__(
        self,
        network: Denoiser,
        codec: Codec,
        init_sigma: float,
        steps: int = 1,
        batch_size: int = BATCH,
        folder: Path | None = None,
    ):
        self.network, self.codec = network, codec
        self.init_sigma, self.steps = init_sigma, steps
        self.batch_size, self.folder = batch_size, folder
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        vae: str | os.PathLike[str] | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH,
    ) -> "OneStepGenerator":
        """The generator in a folder or on the hub, on the CPU.

        Args:
            folder: holds `model.safetensors` and `config.json`; or a name on the hub, `user/repo`
                or `user/repo@revision`, where there is no such folder.
            revision: branch, tag or commit, of a name on the hub; by default the newest.
            cache_dir: where to fetch to; by default huggingface_hub's cache (HF_HOME).
            vae: folder, or name on the hub, of the VAE that decodes a latent generator's output; by
                default `vae/` in `folder`, or else the one that `config.json` names, which is not
                looked at before `generate`.
            dtype: what the network computes in, and holds its weights in: float32, bfloat16 or
                float16. The VAE computes in float32.
            batch_size: samples that a GPU computes at once.

        Raises:
            HubError: there is no such folder, nor such a model on the hub, or it cannot be fetched.
            CheckpointError: the folder is damaged or holds no network.
            CodecError: the codec's description is unusable.
            GeneratorError: the network is no generator, or `dtype` is none of the three.
        """
        if str(dtype).removeprefix("torch.") not in COMPUTE:
            raise GeneratorError(f"dtype {dtype} is none of {', '.join(COMPUTE)}")
        folder = local_folder(folder, revision=revision, cache_dir=cache_dir)
        saved = load_network(folder)
        init_sigma, steps = trained_for(saved, folder)
        network, codec = saved.build(dtype), codec_of(saved, folder, vae, cache_dir)
        return cls(network, codec, init_sigma, steps, batch_size, Path(folder))

    @property
    def at_once(self) -> int:
        """How many samples are computed at the same time on the device that it is on."""
        return torch.get_num_threads() if self.device.type == "cpu" else self.batch_size

    def to(self, device: torch.device | str) -> "OneStepGenerator":
        """Moves the generator to a device; returns it."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def generate(
        self, class_labels: Iterable[int] | None, seeds: Iterable[int], steps: int | None = None
    ) -> Tensor:
        """Images of the classes, one for each seed: uint8 (N, 3, H, W) on the device.

        Args:
            class_labels: N classes; None for a generator that knows no classes.
            seeds: N seeds, 0 to 2**32 - 1. The same seed gives all classes the same noise.
            steps: NFE of an image; by default what the generator was trained for.

        Raises:
            GeneratorError: not as many classes as seeds, a class that the generator does not
                know, or another value out of range.
            CodecError: the VAE cannot be found.
        """
        samples = self._check(class_labels, seeds, steps)
        self.load_codec()
        return self._each(samples, lambda part: self.codec.decode(self._latents(part)))

    def interpolate(
        self, class_label: int | None, seeds: tuple[int, int], count: int, steps: int | None = None
    ) -> Tensor:
        """`count` images of a class on the way from one seed to another, both ends among them:
        uint8 (count, 3, H, W) on the device. The noise is interpolated spherically.

        Raises:
            GeneratorError: as `generate`; or there are not two seeds, or fewer than two images.
            CodecError: the VAE cannot be found.
        """
        labels = None if class_label is None else [class_label] * 2
        ends, [count] = _integers(seeds, "seeds"), _integers([count], "count")
        if len(ends) != 2 or count < 2:
            raise GeneratorError(f"{count} images, {len(ends)} seeds: a way has two ends")
        samples = self._check(labels, ends, steps)
        self.load_codec()
        way = torch.linspace(0, 1, count)
        z, step_noise = self._noise(samples)
        z = slerp(z[0], z[1], way)
        between = [slerp(noise[0], noise[1], way) for noise in step_noise]
        step_noise = torch.stack(between) if between else z.new_zeros(0, *z.shape)

        def make(part: slice) -> Tensor:
            classes = samples.classes[:1] * len(z[part])
            return self.codec.decode(self._denoised(classes, z[part], step_noise[:, part]))

        return self._in_parts(make, self._parts(count))

    def load_codec(self) -> None:
        """Loads what turns latents into images; `generate` does so when it is first called.

        Raises:
            CodecError: the VAE cannot be found or is damaged, or the folder names none.
        """
        channels = self.network.architecture.sample_shape[0]
        if isinstance(self.codec, IdentityCodec) and channels != RGB:
            raise CodecError(
                f"the generator makes {channels} channels, and its {CONFIG} names no VAE that "
                "turns them into images"
            )
        self.codec.load(self.device)

    def sample_latents(
        self, class_labels: Iterable[int] | None, seeds: Iterable[int], steps: int | None = None
    ) -> Tensor:
        """What the network makes, before it is decoded: float32 (N, C, h, w) on the device.

        Arguments and errors are those of `generate`; needs no VAE.
        """
        return self._each(self._check(class_labels, seeds, steps), self._latents)

    def latents_together(
        self, class_labels: Iterable[int] | None, seeds: Iterable[int], steps: int | None = None
    ) -> Tensor:
        """`sample_latents` in one batch, on a CPU too: quicker there, but the others in the
        batch show in the rounding."""
        return self._latents(self._check(class_labels, seeds, steps))

    def to_diffusers(self, folder: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Writes the generator as a folder that diffusers and `from_pretrained` read.

            DiffusionPipeline.from_pretrained(
                folder, custom_pipeline="pipeline", trust_remote_code=True
            )

        makes the same images. Weights go as they are in the generator's own folder, whatever they
        are computed in; that folder itself is completed where it is.

        Args:
            folder: what is written.
            replace: whether a network folder that is there may go.

        Raises:
            CodecError: the VAE is not there.
            SidScaleError: the generator comes from no folder, something is there, or it cannot be
                written.
        """
        if self.folder is None:
            raise GeneratorError("to_diffusers: the generator was loaded from no folder")
        return write_diffusers_folder(self.folder, Path(folder), self.codec, replace=replace)

    def _each(self, samples: Samples, make: Callable[[Samples], Tensor]) -> Tensor:
        """`make` of all samples, in parts that suit the device."""
        parts = [
            Samples(samples.classes[part], samples.seeds[part], samples.steps)
            for part in self._parts(len(samples.seeds))
        ]
        return self._in_parts(make, parts)

    def _parts(self, count: int) -> list[slice]:
        """What the device computes at once."""
        size = 1 if self.device.type == "cpu" else self.batch_size
        return [slice(start, start + size) for start in range(0, count, size)]

    def _in_parts(self, make: Callable[[T], Tensor], parts: Sequence[T]) -> Tensor:
        if self.device.type == "cpu":
            return torch.cat(one_thread_each(make, parts))
        return torch.cat([make(part) for part in parts])

    def _latents(self, samples: Samples) -> Tensor:
        return self._denoised(samples.classes, *self._noise(samples))

    def _noise(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """What the samples start from, (N, C, h, w), and what is added between their steps,
        (steps - 1, N, C, h, w)."""
        shape = self.network.architecture.sample_shape
        noise = SeededNoise(samples.seeds, self.device)
        return generator_inputs(noise, noise, shape, samples.steps)

    @torch.no_grad()
    def _denoised(self, classes: Sequence[int], z: Tensor, step_noise: Tensor) -> Tensor:
        condition = condition_of(classes, self.network.architecture, self.device)
        return generate(self.network, z, step_noise, condition, self.init_sigma)

    def _check(
        self, class_labels: Iterable[int] | None, seeds: Iterable[int], steps: int | None
    ) -> Samples:
        known = self.network.architecture.label_dim
        if class_labels is None and known:
            raise GeneratorError(f"class_labels are missing: the generator knows {known} classes")
        if class_labels is not None and not known:
            raise GeneratorError("the generator knows no classes: class_labels must be None")
        labels = None if class_labels is None else _integers(class_labels, "class_labels")
        numbers = _integers(seeds, "seeds")
        classes = [0] * len(numbers) if labels is None else labels
        if len(classes) != len(numbers):
            raise GeneratorError(
                f"{len(classes)} class_labels and {len(numbers)} seeds: give one class a seed"
            )
        if not numbers:
            raise GeneratorError("class_labels and seeds are empty: there is nothing to make")
        for label in classes:
            if not 0 <= label < max(1, known):
                raise GeneratorError(f"class {label} is not one of the generator's {known}")
        for seed in numbers:
            if not 0 <= seed <= MAX_SEED:
                raise GeneratorError(f"seed {seed} is not in 0 to 2**32 - 1")
        [count] = _integers([self.steps if steps is None else steps], "steps")
        if count < 1:
            raise GeneratorError(f"steps {count}: a generator takes one or more")
        return Samples(classes, numbers, count)


def condition_of(
    classes: Sequence[int], architecture: Architecture, device: torch.device
) -> Tensor | None:
    """Classes as a network is given them: (N,) int64 on the device; None if it knows no classes."""
    return torch.tensor(classes, device=device) if architecture.label_dim else None


def _integers(values: Iterable[int], name: str) -> list[int]:
    try:
        return [operator.index(value) for value in values]
    except (TypeError, ValueError) as error:
        raise GeneratorError(f"{name}: integers are wanted, not {values!r:.80}") from error
