"""Settings of EDM2's published networks as an architecture.

Objects of EDM2's persistent classes hold the arguments that they were made with.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import CLIP_ACTIVATION, LABEL_BALANCE, RESIDUAL_BALANCE
from sid_scale.networks.published_arguments import arguments, refuse_unknown, setting
from sid_scale.pickles.reader import PickledObject, PickleError
from sid_scale.pickles.values import number, numbers

# Arguments in the order in which EDM2 takes them.
_ARGUMENTS = (
    *("img_resolution", "img_channels", "label_dim"),
    *("use_fp16", "sigma_data", "logvar_channels"),
)
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


def read_architecture(
    network: PickledObject, weights: Collection[str], where: str
) -> EDM2Architecture:
    """The architecture that the network's own arguments describe.

    Args:
        network: of class `Precond` or a class of SiD's.
        weights: their names; without any of an uncertainty head, the network has none.
        where: for errors.

    Raises:
        PickleError: a setting is missing, impossible, unknown, or one that networks here do not
            have; says which.
    """
    settings = arguments(network, _ARGUMENTS, where)
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
    has_head = any(name.startswith("logvar") for name in weights)
    return architecture if has_head else architecture.headless()


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
        if name not in expected:
            refuse_unknown(name, value, where)
            continue
        what = setting(name, where)
        if value is None and name.startswith("channel_mult_"):
            continue
        actual: Any = numbers(value, what) if name == "resample_filter" else number(value, what)
        if actual != expected[name]:
            raise PickleError(f"{what} is {actual!s:.64}; networks here have {expected[name]}")
