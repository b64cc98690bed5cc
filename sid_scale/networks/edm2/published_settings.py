"""Settings of EDM2's networks and encoders as an architecture and a codec.

Objects of EDM2's persistent classes hold the arguments that they were made with. Those of a network
give its architecture, those of an encoder the codec of the network's images.
"""

import dataclasses
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
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import CLIP_ACTIVATION, LABEL_BALANCE, RESIDUAL_BALANCE
from sid_scale.pickles.reader import PickledObject, PickleError
from sid_scale.pickles.values import as_object, mapping, number, numbers

# Arguments in the order in which EDM2 takes them.
_NETWORK_ARGUMENTS = (
    *("img_resolution", "img_channels", "label_dim"),
    *("use_fp16", "sigma_data", "logvar_channels"),
)
_ENCODER_ARGUMENTS = ("vae_name", "raw_mean", "raw_std", "final_mean", "final_std", "batch_size")
# Integers, lists of integers, and how large each may be: far beyond what was published, but small
# enough to build.
_INTEGERS = {
    "img_resolution": 4096,
    "img_channels": 1024,
    "label_dim": 1_000_000,
    "model_channels": 16_384,
    "num_blocks": 32,
    "channels_per_head": 16_384,
    "logvar_channels": 16_384,
}
_LISTS = {"channel_mult": 64, "attn_resolutions": 4096}
_LONGEST_LIST = 8
# Settings of EDM2 that are constants here.
_CONSTANTS = {
    "label_balance": LABEL_BALANCE,
    "concat_balance": 0.5,
    "res_balance": RESIDUAL_BALANCE,
    "attn_balance": RESIDUAL_BALANCE,
    "clip_act": CLIP_ACTIVATION,
}


def read_architecture(network: PickledObject, where: str) -> EDM2Architecture:
    """The architecture that the network's own arguments describe; `where` is for errors.

    Raises:
        PickleError: a setting is missing, impossible, unknown, or one that networks here do not
            have; says which.
    """
    settings = _arguments(network, _NETWORK_ARGUMENTS, where)
    missing = {"img_resolution", "img_channels", "label_dim"} - settings.keys()
    if missing:
        raise PickleError(f"{where}: the network's arguments lack {', '.join(sorted(missing))}")
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        what = f"{where}: {name}"
        if name in _INTEGERS:
            fields[name] = _integer(number(value, what), _INTEGERS[name], what)
        elif name in _LISTS:
            fields[name] = tuple(_integer(n, _LISTS[name], what) for n in numbers(value, what))
        elif name in ("sigma_data", "dropout"):
            fields[name] = float(number(value, what))
    architecture = EDM2Architecture(**fields)
    _check_ranges(architecture, where)
    _check_constants(settings, architecture, where)
    return architecture


def read_codec(
    encoder: Any, architecture: EDM2Architecture, vae: str | None, where: str
) -> dict[str, Any]:
    """Description of the codec that a file's encoder (an object, or None) stands for.

    Without an encoder, networks of four channels work on the Stability VAE's latents, as all
    published ones do, and others on pixels.

    Args:
        encoder: what the file holds under `encoder`, None if nothing.
        architecture: of the network.
        vae: folder of the VAE; None: the name that the encoder gives.
        where: for errors.

    Raises:
        PickleError: an encoder or setting that codecs here do not have; says which.
    """
    is_latent = architecture.img_channels == len(STABILITY_MEAN)
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
            settings = _arguments(found, _ENCODER_ARGUMENTS, f"{where}: encoder")
    if is_latent:
        return _read_vae(settings, vae, where).describe()
    if vae is not None:
        raise PickleError(f"{where}: the network works on pixels: there is no use for VAE {vae}")
    return IdentityCodec().describe()


def _arguments(made: PickledObject, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The arguments that an object was made with, by name."""
    positional = made.state.get("_init_args", [])
    if not isinstance(positional, list) or len(positional) > len(names):
        raise PickleError(f"{where}: _init_args should be at most {len(names)} values")
    by_name = mapping(made.state.get("_init_kwargs"), f"{where}: _init_kwargs")
    return {**dict(zip(names, positional)), **by_name}


# --- the network --------------------------------------------------------------------------


def _integer(value: int | float, most: int, what: str) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise PickleError(f"{what} is {value}; it should be an integer from 0 to {most}")
    return value


def _check_ranges(architecture: EDM2Architecture, where: str) -> None:
    ranges = {
        "channel_mult": 0 < len(architecture.channel_mult) <= _LONGEST_LIST,
        "attn_resolutions": len(architecture.attn_resolutions) <= _LONGEST_LIST,
        "channels_per_head": architecture.channels_per_head > 0,
        "sigma_data": 0 < architecture.sigma_data < math.inf,
        "dropout": 0 <= architecture.dropout < 1,
    }
    for name, fits in ranges.items():
        if not fits:
            raise PickleError(f"{where}: {name} is out of range")


def _check_constants(settings: dict[str, Any], architecture: EDM2Architecture, where: str) -> None:
    """Refuses, by name, settings that would make another network than EDM2Architecture's."""
    expected: dict[str, Any] = {
        **_CONSTANTS,
        "channel_mult_noise": architecture.channel_mult[0],
        "channel_mult_emb": max(architecture.channel_mult),
        "resample_filter": [1, 1],
    }
    ours = {field.name for field in dataclasses.fields(EDM2Architecture)}
    for name, value in settings.items():
        if name in ours or name == "use_fp16":  # in which dtype it computes is a choice here
            continue
        what = f"{where}: {name[:64]}" if name.isidentifier() else f"{where}: {name[:64]!a}"
        if name not in expected:
            if value is None or (isinstance(value, int | float) and value == 0):
                continue  # something that networks here do not have, switched off
            raise PickleError(f"{what} is a setting that networks here do not have")
        if value is None and name.startswith("channel_mult_"):
            continue
        actual: Any = numbers(value, what) if name == "resample_filter" else number(value, what)
        if actual != expected[name]:
            raise PickleError(f"{what} is {actual!s:.64}; networks here have {expected[name]}")


# --- the encoder --------------------------------------------------------------------------


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
