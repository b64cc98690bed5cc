"""Latents <-> pixels.

A codec turns images (uint8, (N, 3, H, W)) into what the network sees, with a standard
deviation of sigma_data = 0.5 over the data set, and back. Pixel models use `IdentityCodec`, of
which shards store the images themselves; latent models the Stability VAE, whose posterior EDM2
stores as mean and standard deviation and whose samples it normalises channel by channel (`scale`,
`bias`). What shards store, in which shape and dtype, only the codec says.

In names, latents stand for what any network sees: those of a pixel model are pixels in [-1, 1].

Training touches only `sample` and needs no VAE weights; `encode` and `decode` read them when
first called.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.hub.fetch import VAE_WEIGHTS
from sid_scale.hub.folders import local_folder, on_every_node
from sid_scale.hub.names import HubError, Place, is_name
from sid_scale.paths import expand

# EDM2's assumed mean and standard deviation of the Stability VAE's latents over ImageNet-512,
# for images in [0, 1]; normalised latents have mean 0 and standard deviation 0.5.
STABILITY_VAE = "stabilityai/sd-vae-ft-mse"  # its name on the hub
STABILITY_MEAN = (5.81, 3.25, 0.12, -2.15)
STABILITY_STD = (4.17, 4.62, 3.71, 3.28)
SIGMA_DATA = 0.5
VAE_CONFIG = "config.json"
ELSEWHERE = "A generator's may also be in its own folder as vae/, or be named with `--vae`."
BATCH = 64  # images that pass through the VAE at once, at 64x64 pixels; fewer when larger


# Makes unit normal numbers for each sample of a batch: the shape of one -> (N, *shape).
Normal = Callable[..., Tensor]


class CodecError(SidScaleError):
    """A codec that cannot be had; the message says which, why and what to do."""


class Codec(Protocol):
    """What every codec offers."""

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """In which dtypes shards may store samples, the usual one first."""

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """What shards store of a network's images of `shape` (C, h, w)."""

    def describe(self) -> dict[str, Any]:
        """JSON description from which `open_codec` makes the codec again."""

    def check(self) -> None:
        """Raises CodecError now if `encode` or `decode` would later lack a file."""

    def load(self, device: torch.device) -> None:
        """Reads now what `encode` and `decode` read when first called."""

    def encode(self, images: Tensor, at_once: int | None = None) -> Tensor:
        """uint8 (N, 3, H, W) -> what shards store, (N, *stored_shape).

        `at_once` images go through the VAE together; by default what fits beside a training run.
        """

    def posterior(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """What shards store -> mean and std of the raw latents, float32 (N, C, h, w) each."""

    def sample(self, stored: Tensor, normal: Normal) -> Tensor:
        """What shards store -> network latents (N, C, h, w), with unit noise as far as needed."""

    def decode(self, latents: Tensor) -> Tensor:
        """Network latents (N, C, h, w) -> uint8 images (N, 3, H, W) on the same device."""

    def pixels(self, latents: Tensor) -> Tensor:
        """Network latents (N, C, h, w) -> pixels (N, 3, H, W) in about [-1, 1], with gradient."""


class IdentityCodec:
    """Pixels in [-1, 1]: the network's images are the images, stored as they are.

    Images of one or two channels are grey, and are shown in three equal colours. A second or fourth
    channel is transparency, and is not shown. Images of more channels raise CodecError.
    """

    stored_dtypes = ("uint8",)

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        _colours(shape[0])
        return shape

    def describe(self) -> dict[str, Any]:
        return {"kind": "identity"}

    def check(self) -> None:
        return

    def load(self, device: torch.device) -> None:
        return

    def encode(self, images: Tensor, at_once: int | None = None) -> Tensor:
        return images

    def posterior(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        mean = stored.float() / 127.5 - 1
        return mean, torch.zeros_like(mean)

    def sample(self, stored: Tensor, normal: Normal) -> Tensor:
        return self.posterior(stored)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return (self.pixels(latents) * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def pixels(self, latents: Tensor) -> Tensor:
        return latents[:, : _colours(latents.shape[1])].float().expand(-1, 3, -1, -1)


class VAECodec:
    """An `AutoencoderKL` of diffusers in a folder (config and safetensors).

    Shards store the posterior's mean, then its standard deviation: (2C, h, w). `folder` is a folder
    or a name on the hub; `place` is where the files are, once that is known.
    """

    stored_dtypes = ("float32", "float16")

    def __init__(self, folder: str | Path, scale: Sequence[float], bias: Sequence[float]):
        self.folder = Path(folder)
        self.place: Path | None = None
        self.cache_dir: Place | None = None  # where to fetch a VAE to; None: the hub's cache
        self.scale, self.bias = tuple(scale), tuple(bias)
        self.dtype = torch.float32  # that the VAE computes in
        self.decodes_at_once: int | None = None  # images; None: what fits beside a training run
        self._vae: Any = None
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = shape
        return 2 * channels, height, width

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "vae",
            "vae": str(self.folder),
            "scale": list(self.scale),
            "bias": list(self.bias),
        }

    def check(self) -> None:
        self.located()

    def located(self) -> Path:
        """The folder of the VAE's files, which are there; it is fetched if it is on the hub.

        Raises:
            CodecError: there are none.
        """
        if self.place is None and is_name(self.folder):
            try:
                self.place = local_folder(self.folder, cache_dir=self.cache_dir)
            except HubError as error:
                raise CodecError(f"the VAE {error}. {ELSEWHERE}") from error
        place = self.place or self.folder
        for name in (VAE_CONFIG, VAE_WEIGHTS):
            if not (place / name).is_file():
                raise CodecError(
                    f"{place}: no {name} there. The VAE is a diffusers folder, or the name of one "
                    f"on the hub (for EDM2's ImageNet-512 models: {STABILITY_VAE}); the codec's "
                    f"`vae` in index.json or config.json names it. {ELSEWHERE}"
                )
        return place

    def load(self, device: torch.device) -> None:
        self._load(device)

    def use(self, vae: Any) -> None:
        """Takes an `AutoencoderKL` that is loaded already, and computes in its dtype."""
        self._vae, self.dtype = vae, vae.dtype

    @torch.no_grad()
    def encode(self, images: Tensor, at_once: int | None = None) -> Tensor:
        vae = self._load(images.device)
        parts = []
        for part in images.split(at_once or _batch(images.shape[-1])):
            posterior = vae.encode((part.float() / 255).to(self.dtype)).latent_dist
            parts.append(torch.cat([posterior.mean, posterior.std], dim=1).float())
        return torch.cat(parts)

    def posterior(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = stored.float().chunk(2, dim=1)
        return mean, std

    def sample(self, stored: Tensor, normal: Normal) -> Tensor:
        mean, std = self.posterior(stored)
        scale, bias = self._per_channel(mean.device)
        return (mean + normal(*mean.shape[1:]) * std) * scale + bias

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._load(latents.device)
        side = 2 ** (len(vae.config.block_out_channels) - 1) * latents.shape[-1]
        parts = latents.split(self.decodes_at_once or _batch(side))
        decoded = (self._decoded(part) for part in parts)
        return torch.cat([part.clamp(0, 1).mul(255).to(torch.uint8) for part in decoded])

    def pixels(self, latents: Tensor) -> Tensor:
        return 2 * self._decoded(latents) - 1

    def _decoded(self, latents: Tensor) -> Tensor:
        """Images in about [0, 1], float32."""
        vae = self._load(latents.device)
        scale, bias = self._per_channel(latents.device)
        raw = (latents.float() - bias) / scale
        decoded: Tensor = vae.decode(raw.to(self.dtype)).sample.float()
        return decoded

    def _per_channel(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and bias, (C, 1, 1) each, copied to a device once: a copy waits for it."""
        if device not in self._on:
            scale, bias = torch.tensor([self.scale, self.bias], dtype=torch.float32, device=device)
            self._on[device] = scale[:, None, None], bias[:, None, None]
        return self._on[device]

    def _load(self, device: torch.device) -> Any:
        if self._vae is None:
            # diffusers takes seconds to import, and training needs it only for its sample grids.
            from diffusers import AutoencoderKL

            folder = self.located()
            try:
                vae = AutoencoderKL.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    torch_dtype=self.dtype,
                    low_cpu_mem_usage=False,  # small, and the other way wants another package
                )
            except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
                raise CodecError(
                    f"the VAE in {folder} is damaged or none: {error}; fetch it again"
                ) from error
            self._vae = vae.eval().requires_grad_(False)
        return self._vae.to(device)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Channel means and standard deviations of raw latents -> `scale` and `bias` that bring
    them to mean 0 and standard deviation sigma_data."""
    scale = [SIGMA_DATA / s for s in std]
    return scale, [-m * k for m, k in zip(mean, scale, strict=True)]


def stability_vae(folder: str | Path) -> VAECodec:
    """The codec of EDM2's ImageNet-512 models; `folder` holds sd-vae-ft-mse."""
    return VAECodec(folder, *normalisation(STABILITY_MEAN, STABILITY_STD))


def open_codec(description: dict[str, Any], beside: str | Path | None = None) -> Codec:
    """A codec from its description; a relative VAE folder is looked for in `beside` first, and a
    name on the hub (`user/repo`) where there is no such folder.

    Raises:
        CodecError: the description is of no known kind or incomplete.
    """
    kind = description.get("kind")
    if kind == "identity":
        return IdentityCodec()
    if kind != "vae":
        raise CodecError(f"unknown codec {kind!r}; there are 'identity' and 'vae'")
    missing = [key for key in ("vae", "scale", "bias") if key not in description]
    if missing:
        raise CodecError(f"the description of the VAE codec lacks {', '.join(missing)}")
    vae, scale, bias = (description[key] for key in ("vae", "scale", "bias"))
    if not (isinstance(vae, str) and _are_numbers(scale) and _are_numbers(bias)):
        raise CodecError(
            "the VAE codec is described by a folder and two lists of numbers, not by "
            f"vae {vae!r}, scale {scale!r}, bias {bias!r}"
        )
    try:
        expanded = expand(vae)
    except ValueError as error:
        raise CodecError(f"the VAE codec, {vae}: {error}") from error
    folder = Path(expanded)
    if beside is not None and (Path(beside) / folder).is_dir():
        folder = Path(beside) / folder
    elif expanded != vae:  # what the environment holds is nothing to ask the hub for
        folder = folder.absolute()
    return VAECodec(folder, scale, bias)


def read_codec(path: str | Path, vae: str | Path | None = None) -> Codec:
    """The codec that a network folder works with, or that a JSON file describes.

    Args:
        path: a folder with a `config.json`, or a file as `Codec.describe` has it.
        vae: the VAE's folder, or its name on the hub, if it is not the one that is described.

    Raises:
        CodecError: nothing there describes a codec.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text())
        description = dict(fields.get("codec", fields))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CodecError(
            f"{file}: describes no codec ({error}); a network folder does, or a file such as "
            '{"kind": "vae", "vae": FOLDER, "scale": [...], "bias": [...]}, where scale is '
            "0.5 / std and bias -mean * scale of each channel of the raw latents"
        ) from error
    codec = open_codec(description, beside=file.parent)
    if vae is not None and isinstance(codec, VAECodec):
        codec.folder = Path(vae)
    return codec


def fetch_once_a_node(codec: Codec) -> None:
    """Fetches the VAE of a codec that names one on the hub, for all ranks. Collective.

    Raises:
        CodecError: it cannot be had.
    """
    if isinstance(codec, VAECodec) and codec.place is None and is_name(codec.folder):
        try:
            codec.place = on_every_node({"VAE": codec.folder})["VAE"]
        except HubError as error:
            raise CodecError(f"{error}. {ELSEWHERE}") from error


def absolute(vae: str) -> str:
    """A VAE's folder as it can be named from everywhere; a name on the hub stays one."""
    on_hub = is_name(vae) and not os.path.exists(vae)
    return vae if on_hub else str(Path(vae).resolve())


def differing_key(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first key that makes the latents of two described codecs different; None: none does.

    The VAE's folder may differ.
    """
    keys = ("kind", "scale", "bias")
    return next((key for key in keys if ours.get(key) != theirs.get(key)), None)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values)


def _colours(channels: int) -> int:
    """How many channels of an image are its colours; the others are transparency."""
    if channels > 4:
        raise CodecError(
            f"a network of pixels of {channels} channels: images have 4 at most; a network of "
            "latents has a codec with a VAE in its config.json"
        )
    return 1 if channels < 3 else 3


def _batch(pixels: int) -> int:
    return max(1, BATCH * 64**2 // pixels**2)
