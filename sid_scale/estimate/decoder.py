"""The decoder that a loss may look at images through, on "meta": its weights are not read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_scale.codecs import VAE_CONFIG, CodecError, IdentityCodec, VAECodec, open_codec

# The Stability VAE's, as diffusers describes it.
STABILITY_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}


def decoder(codec: dict[str, Any], channels: int, teacher: Path) -> Callable[[Tensor], Tensor]:
    """Network latents (N, C, h, w) -> pixels, as `Codec.pixels`.

    Args:
        codec: its description. A VAE whose folder is not there is taken to be the Stability VAE.
        channels: C.
        teacher: the network folder that the description is of.

    Raises:
        CodecError: what is in the VAE's folder describes none.
    """
    if codec["kind"] == "identity":
        return IdentityCodec().pixels
    vae = _UnreadVAE(".", [1.0] * channels, [0.0] * channels)
    if "vae" in codec:
        opened = open_codec(codec, beside=teacher)
        assert isinstance(opened, VAECodec)
        vae.settings = _settings(opened.folder / VAE_CONFIG) or vae.settings
    return vae.pixels


class _UnreadVAE(VAECodec):
    settings: Mapping[str, Any] = STABILITY_VAE

    def _load(self, device: torch.device) -> Any:
        if self._vae is None:
            from diffusers import AutoencoderKL

            settings = {**self.settings, "latent_channels": len(self.scale)}
            try:
                with torch.device("meta"):
                    vae: Any = AutoencoderKL.from_config(settings)
            except (TypeError, ValueError) as error:
                raise CodecError(f"the VAE of the teacher cannot be built: {error}") from error
            self._vae = vae.eval().requires_grad_(False)
        return self._vae


def _settings(file: Path) -> dict[str, Any] | None:
    """Of a VAE; None where there is no file."""
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise CodecError(f"{file} describes no VAE: {error}") from error
