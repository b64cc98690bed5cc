"""Encoders of published files as codecs.

An encoder holds the arguments that it was made with: they give the codec of the network's images.
"""

import math
from typing import Any

from sid_scale.codecs import (
    SIGMA_DATA,
    STABILITY_MEAN,
    STABILITY_STD,
    STABILITY_VAE,
    IdentityCodec,
    VAECodec,
)
from sid_scale.networks.published_arguments import arguments
from sid_scale.pickles.reader import PickleError
from sid_scale.pickles.values import as_object, number, numbers

# Arguments in the order in which EDM2 takes them.
_ARGUMENTS = ("vae_name", "raw_mean", "raw_std", "final_mean", "final_std", "batch_size")


def read_codec(
    encoder: Any, img_channels: int | None, vae: str | None, where: str
) -> dict[str, Any]:
    """Description of the codec that a file's encoder (an object, or None) stands for.

    Without an encoder, networks of four channels work on the Stability VAE's latents, as all
    published ones do, and others on pixels.

    Args:
        encoder: what the file holds under `encoder`, None if nothing.
        img_channels: of what the network sees; None: its family works on pixels alone.
        vae: folder of the VAE; None: the name that the encoder gives.
        where: for errors.

    Raises:
        PickleError: an encoder or setting that codecs here do not have; says which.
    """
    is_latent = img_channels == len(STABILITY_MEAN)
    settings: dict[str, Any] = {}
    if encoder is not None:
        found = as_object(encoder, f"{where}: encoder")
        if found.class_name not in ("StandardRGBEncoder", "StabilityVAEEncoder"):
            raise PickleError(
                f"{where}: the encoder is of class {found.class_name}; known are "
                "StandardRGBEncoder and StabilityVAEEncoder"
            )
        is_latent = found.class_name == "StabilityVAEEncoder"
        if is_latent:
            settings = arguments(found, _ARGUMENTS, f"{where}: encoder")
    if is_latent:
        return _read_vae(settings, vae, where).describe()
    if vae is not None:
        raise PickleError(
            f"{where}: the network works on pixels: there is no use for VAE {vae}; leave it out"
        )
    return IdentityCodec().describe()


def _read_vae(settings: dict[str, Any], vae: str | None, where: str) -> VAECodec:
    """The codec that maps raw latents of means and stds `raw_*` per channel to `final_*`."""

    def per_channel(name: str, default: Any) -> list[int | float]:
        value, what = settings.get(name, default), f"{where}: {name} of the encoder"
        if name.startswith("final_") and not isinstance(value, list | tuple):
            value = [number(value, what)] * len(means)
        found = numbers(value, what)
        if not all(math.isfinite(n) and (n > 0 or name.endswith("mean")) for n in found):
            raise PickleError(f"{what} is out of range")
        return found

    folder = vae if vae is not None else settings.get("vae_name", STABILITY_VAE)
    if not isinstance(folder, str):
        raise PickleError(f"{where}: vae_name of the encoder should be a text")
    means = per_channel("raw_mean", STABILITY_MEAN)
    stds = per_channel("raw_std", STABILITY_STD)
    final_means, final_stds = per_channel("final_mean", 0), per_channel("final_std", SIGMA_DATA)
    if not len(means) == len(stds) == len(final_means) == len(final_stds):
        raise PickleError(f"{where}: means and stds of the encoder differ in number")
    scale = [final / raw for final, raw in zip(final_stds, stds)]
    bias = [final - raw * k for final, raw, k in zip(final_means, means, scale)]
    return VAECodec(folder, scale, bias)
