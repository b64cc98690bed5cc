"""Settings of EDM's published networks as an architecture.

A network holds the arguments that its preconditioning was made with, those of the U-Net among them.
What it does not state is EDM's default.
"""

from collections.abc import Collection
from typing import Any

from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.published_arguments import arguments, refuse_unknown
from sid_scale.pickles.reader import PickledObject, PickleError
from sid_scale.pickles.values import as_object, mapping, number, numbers

# Arguments in the order in which EDM takes them.
_ARGUMENTS = (
    *("img_resolution", "img_channels", "label_dim"),
    *("use_fp16", "sigma_min", "sigma_max", "sigma_data", "model_type"),
)
_REQUIRED = {"img_resolution", "img_channels"}
SUFFIX = "_EncoderDecoder"  # of SiDA's classes
# Class of the U-Net -> EDM's defaults of what networks differ in.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.1,
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
        "dropout": 0.1,
    },
}
_NUMBERS = (
    *("img_resolution", "img_channels", "label_dim", "augment_dim", "model_channels"),
    *("channel_mult_emb", "num_blocks", "channel_mult_noise", "sigma_data", "dropout"),
)
_LISTS = ("channel_mult", "attn_resolutions", "resample_filter")
_TEXTS = ("embedding_type", "encoder_type", "decoder_type")
# Noise levels that samplers and losses ask networks for.
_LEAST_SIGMA, _MOST_SIGMA = 0.002, 80
_MOST_BLOCKS = 256  # of an encoder: far beyond what was published, but soon built


def read_architecture(
    network: PickledObject, weights: Collection[str], where: str
) -> EDMArchitecture:
    """The architecture that the network's own arguments and the class of its U-Net describe.

    Args:
        network: of class `EDMPrecond` or SiDA's variant of it.
        weights: their names; no setting depends on them.
        where: for errors.

    Raises:
        PickleError: a setting is missing, impossible, unknown, or one that networks here do not
            have; says which.
    """
    model_type = _model_type(network, where)
    settings = arguments(network, _ARGUMENTS, where)
    missing = _REQUIRED - settings.keys()
    if missing:
        raise PickleError(f"{where}: the network's arguments lack {', '.join(sorted(missing))}")
    fields: dict[str, Any] = {"label_dim": 0, **_DEFAULTS[model_type]}
    for name, value in settings.items():
        what = f"{where}: {name}"
        if name in _NUMBERS:
            fields[name] = number(value, what)
        elif name in _LISTS:
            fields[name] = tuple(numbers(value, what))
        elif name in _TEXTS:
            fields[name] = _text(value, what)
        else:
            _check_other(name, value, model_type, where)
    architecture = EDMArchitecture(model_type=model_type, **fields)
    try:
        architecture.check()
    except ValueError as error:
        raise PickleError(f"{where}: {error}") from error
    blocks = len(architecture.channel_mult) * architecture.num_blocks
    if blocks > _MOST_BLOCKS:
        raise PickleError(
            f"{where}: num_blocks and channel_mult make an encoder of {blocks} blocks; "
            f"{_MOST_BLOCKS} are the most"
        )
    if not architecture.sigma_data:
        raise PickleError(f"{where}: sigma_data is 0, which is no standard deviation of images")
    return architecture


def _model_type(network: PickledObject, where: str) -> str:
    modules = mapping(network.state.get("_modules"), f"{where}: _modules")
    unet = as_object(modules.get("model"), f"{where}: model")
    model_type = unet.class_name.removesuffix(SUFFIX)
    if model_type not in _DEFAULTS:
        raise PickleError(
            f"{where}: model is of class {unet.class_name}; known are {', '.join(_DEFAULTS)}"
        )
    return model_type


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PickleError(f"{what} should be a text, but has another form")
    return value


def _check_other(name: str, value: Any, model_type: str, where: str) -> None:
    """Refuses, by name, settings that would make another network than EDMArchitecture's."""
    what = f"{where}: {name}"
    if name == "use_fp16":  # in which dtype it computes is a choice here
        return
    if name == "model_type":
        if _text(value, what).removesuffix(SUFFIX) != model_type:
            raise PickleError(f"{what} is {value!a:.64}, but the U-Net's class is {model_type}")
    elif name == "label_dropout":
        # A matter of the teacher's own training: what is distilled from it sees every label.
        if not 0 <= number(value, what) <= 1:
            raise PickleError(f"{what} is {value}, which is no probability")
    elif name == "sigma_min":
        # EDM's network computes the same outside of its range, but its samplers keep to it.
        if not number(value, what) <= _LEAST_SIGMA:
            raise PickleError(f"{what} is {value}; networks here serve noise from {_LEAST_SIGMA}")
    elif name == "sigma_max":
        if not number(value, what) >= _MOST_SIGMA:
            raise PickleError(f"{what} is {value}; networks here serve noise up to {_MOST_SIGMA}")
    else:
        refuse_unknown(name, value, where)
