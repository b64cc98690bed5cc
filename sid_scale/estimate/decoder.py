"""The decoder that a loss may look at images through, on "meta": nothing of it is read."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sid_scale.codecs import IdentityCodec, VAECodec

# The Stability VAE's, as diffusers describes it.
STABILITY_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}


def decoder(codec: Mapping[str, Any], channels: int) -> Callable[[Tensor], Tensor]:
    """Network latents (N, C, h, w) -> pixels, as `Codec.pixels`.

    Args:
        codec: its description; a VAE is taken to be the Stability VAE.
        channels: C.
    """
    if codec["kind"] == "identity":
        return IdentityCodec().pixels
    return _UnreadVAE(".", [1.0] * channels, [0.0] * channels).pixels


class _UnreadVAE(VAECodec):
    def _load(self, device: torch.device) -> Any:
        if self._vae is None:
            from diffusers import AutoencoderKL

            with torch.device("meta"):
                vae: Any = AutoencoderKL(**{**STABILITY_VAE, "latent_channels": len(self.scale)})
            self._vae = vae.eval().requires_grad_(False)
        return self._vae
