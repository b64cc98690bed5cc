"""A distilled generator as a pipeline of diffusers.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline", trust_remote_code=True
    )
    images = pipe(class_labels=[3, 3, 7], seeds=[0, 1, 0]).images

The folder is what `OneStepGenerator.to_diffusers` writes. The images are those that
`OneStepGenerator` makes of the same classes and seeds, on a CPU to the last bit. Importing this
module imports diffusers, which takes seconds.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from sid_scale.codecs import VAECodec
from sid_scale.dtypes import COMPUTE
from sid_scale.generators.diffusers_folder import (
    write_network_import,
    write_pipeline_import,
)
from sid_scale.generators.folder import VAE, GeneratorError, codec_of, trained_for
from sid_scale.generators.generator import MAX_SEED, OneStepGenerator
from sid_scale.hub.folders import local_folder
from sid_scale.networks.denoiser import Prediction
from sid_scale.networks.folder import CONFIG, NetworkFolder, load_network, save_network

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
UNSUPPORTED = ("device_map", "quantization_config")  # of what diffusers passes on


class OneStepNetwork(ModelMixin):
    """The network of a generator's folder, as a part of a pipeline.

    Args:
        saved: what is in the folder.
        folder: the folder.
        dtype: what the network computes in: float32, bfloat16 or float16.

    Raises:
        GeneratorError: `dtype` is none of the three, or the network is no generator.
    """

    def __init__(self, saved: NetworkFolder, folder: Path, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.init_sigma, self.steps = trained_for(saved, folder)
        self.saved, self.folder = saved, folder
        self.architecture = saved.architecture
        self.network = saved.build(_checked(dtype))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | os.PathLike[str], **options: Any
    ) -> "OneStepNetwork":
        """The network in a folder, or in the one around it; or on the hub, by its name and, if
        given, `revision` and `cache_dir`. `dtype` or `torch_dtype` is what it computes in. Other
        options of diffusers' models have no meaning here.

        Raises:
            SidScaleError: there is no generator, or an option asks for what cannot be.
        """
        for name in UNSUPPORTED:
            if options.get(name) is not None:
                raise GeneratorError(f"{name} is not supported here: leave it out, and use .to()")
        where = local_folder(
            folder, revision=options.get("revision"), cache_dir=options.get("cache_dir")
        )
        if not (where / CONFIG).is_file() and (where.parent / CONFIG).is_file():
            where = where.parent
        dtype = options.get("dtype") or options.get("torch_dtype") or torch.float32
        return cls(load_network(where), where, dtype)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **options: Any
    ) -> None:
        """Writes the weights as they were loaded, whatever they are computed in.

        Raises:
            CheckpointError: something else is there, or it cannot be written.
        """
        saved, folder = self.saved, Path(save_directory)
        if saved.codec.get("kind") == "vae":
            codec = {**saved.codec, "vae": f"../{VAE}"}  # where a pipeline's parts are
            saved = dataclasses.replace(saved, codec=codec)
        save_network(folder, saved)
        write_network_import(folder)

    def to(self, *args: Any, **kwargs: Any) -> "OneStepNetwork":  # type: ignore[override]
        """Moves the network; for another dtype it is built anew from what was loaded.

        Raises:
            GeneratorError: networks cannot compute in that dtype.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and dtype != self.dtype:
            self.network = self.saved.build(_checked(dtype), device or self.device)
        if device is not None:
            self.network.to(device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; some of its weights are float32 always."""
        return self.network.compute_dtype

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Prediction:
        """Denoises `x`, see `Denoiser.forward`."""
        prediction: Prediction = self.network(x, sigma, condition)
        return prediction


class OneStepPipeline(DiffusionPipeline):
    """Images of classes in one step, or a few.

    Args:
        generator: the network.
        vae: decodes a latent generator's output; None for a generator of pixels.
    """

    model_cpu_offload_seq: Any = "generator->vae"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(self, generator: OneStepNetwork, vae: AutoencoderKL | None):
        super().__init__()
        self.register_modules(generator=generator, vae=vae)

    def __call__(
        self,
        class_labels: int | Iterable[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        seeds: int | Iterable[int] | None = None,
        batch_size: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Makes images.

        Args:
            class_labels: N classes, or one; None for a generator that knows no classes.
            generator: one, or one for each image; by default PyTorch's. Each image takes a seed of
                it: the one that it was given, if nothing was drawn from it since, or else a
                drawn one.
            num_inference_steps: NFE of an image; by default what the generator was trained for.
            output_type: "pil" (a list), "np" (N, H, W, 3) or "pt" (N, 3, H, W) in [0, 1], or
                "latent": what the network makes, float32 (N, C, h, w).
            return_dict: whether `ImagePipelineOutput` is returned, or a tuple.
            seeds: N seeds, as `OneStepGenerator.generate` takes them, in place of `generator`.
            batch_size: N, where neither classes nor seeds say it.

        Raises:
            GeneratorError: arguments do not go together, or are out of range.
            CodecError: the VAE is missing.
        """
        if output_type not in OUTPUT_TYPES:
            raise GeneratorError(f"output_type {output_type!r} is none of {OUTPUT_TYPES}")
        if batch_size is not None and not _is_count(batch_size):
            raise GeneratorError(f"batch_size {batch_size!r:.80} is no number of images")
        labels = None if class_labels is None else _listed(class_labels, "class_labels")
        count = batch_size if batch_size is not None else 1 if labels is None else len(labels)
        numbers = _seeds(seeds, generator, count)
        if batch_size is not None and len(numbers) != batch_size:
            raise GeneratorError(f"batch_size is {batch_size}, but there are {len(numbers)} seeds")
        one_step = self._one_step()
        if output_type == "latent":
            images: Any = one_step.sample_latents(labels, numbers, num_inference_steps)
        else:
            made = one_step.generate(labels, numbers, num_inference_steps)
            images = _converted(made, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _one_step(self) -> OneStepGenerator:
        """What makes the images, of the parts as they are now."""
        network = self.generator
        codec = codec_of(network.saved, network.folder)
        if isinstance(codec, VAECodec) and self.vae is not None:
            codec.use(self.vae)
        one_step = OneStepGenerator(network, codec, network.init_sigma, network.steps)
        one_step.device = self._execution_device
        return one_step

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        **options: Any,
    ) -> None:
        """Writes a folder from which the pipeline can be loaded again; see `DiffusionPipeline`.

        Raises:
            GeneratorError: it was to be written as a pickle.
        """
        if not safe_serialization:
            raise GeneratorError("safe_serialization=False: a generator is not saved as a pickle")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_pipeline_import(Path(save_directory))
        super().save_pretrained(save_directory, safe_serialization, **options)


def _checked(dtype: torch.dtype) -> torch.dtype:
    if str(dtype).removeprefix("torch.") not in COMPUTE:
        raise GeneratorError(f"dtype {dtype} is none of {', '.join(COMPUTE)}")
    return dtype


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _listed(values: Any, name: str) -> list[Any]:
    """Several values, or one, as a list."""
    if isinstance(values, torch.Generator) or hasattr(values, "__index__"):
        return list(values) if getattr(values, "ndim", 0) else [values]
    try:
        return list(values)
    except TypeError as error:
        raise GeneratorError(f"{name}: a list is wanted, not {values!r:.80}") from error


def _seeds(
    seeds: int | Iterable[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
) -> list[Any]:
    """A seed for each image."""
    if seeds is not None and generator is not None:
        raise GeneratorError("seeds and generator are given: leave one out")
    if seeds is not None:
        return _listed(seeds, "seeds")
    if generator is None or isinstance(generator, torch.Generator):
        return [next_seed(generator or torch.default_generator) for _ in range(count)]
    each = _listed(generator, "generator")
    if not all(isinstance(one, torch.Generator) for one in each):
        raise GeneratorError(
            "generator: a torch.Generator is wanted, or a list of some; numbers go to seeds"
        )
    return [next_seed(one) for one in each]


def next_seed(generator: torch.Generator) -> int:
    """The seed that a generator was given, if nothing was drawn from it since; else a drawn one.

    A number is drawn from it in any case: the next seed is another one.
    """
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    is_fresh = torch.equal(fresh.get_state(), generator.get_state())
    drawn = torch.randint(MAX_SEED + 1, (), generator=generator, device=generator.device)
    # Seeds with the same low 32 bits draw the same numbers.
    return generator.initial_seed() & MAX_SEED if is_fresh else int(drawn)


def _converted(images: Tensor, output_type: str) -> Any:
    """uint8 images (N, 3, H, W) as diffusers returns them."""
    if output_type == "pt":
        return images.float() / 255
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays.astype(np.float32) / 255
    return [PIL.Image.fromarray(array) for array in arrays]
