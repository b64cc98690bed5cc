"""Networks as EDM's and SiD's training writes them, in the format of `tests/networks/published.py`.

Classes and their arguments are those of EDM's own code, and so is what its networks keep as
attributes; what a part has no use for is there as None.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm.network import EDM
from sid_scale.networks.edm.sizes import ncsnpp
from tests.networks.published import EasyDict, persistent

# Ours -> EDM's.
CLASSES = {"Block": "UNetBlock", "Conv": "Conv2d", "ConvThenDown": "Conv2d"}
CONV = {"weight": None, "bias": None, "resample_filter": None}


def settings_of(architecture: EDMArchitecture) -> dict[str, Any]:
    """The keyword arguments with which EDM would make it."""
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(architecture).items()
    }
    if architecture.model_type == "DhariwalUNet":
        song = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type")
        given = {k: v for k, v in given.items() if k not in (*song, "resample_filter")}
    return {**given, "use_fp16": False}


def published(
    architecture: EDMArchitecture,
    state: Mapping[str, Tensor],
    class_name: str = "EDMPrecond",
    *arguments: Any,
    unet: str | None = None,
    **settings: Any,
) -> nn.Module:
    """A network as EDM would pickle it, made with these arguments.

    Args:
        unet: the class of the U-Net; None: the architecture's, in SiDA's variant where
            `class_name` is that.
    """
    with torch.device("meta"):
        network = EDM(architecture)
    network.load_state_dict(state, assign=True)
    suffix = "_EncoderDecoder" if class_name.endswith("_EncoderDecoder") else ""
    made = persistent(class_name, *arguments, base=nn.Module, **settings)
    made.img_resolution, made.img_channels = architecture.img_resolution, architecture.img_channels
    made.label_dim, made.use_fp16 = architecture.label_dim, False
    made.sigma_min, made.sigma_max, made.sigma_data = 0, math.inf, architecture.sigma_data
    made.model = _converted(network.model, unet or architecture.model_type + suffix)
    of_precond = ("img_channels", "use_fp16", "sigma_data", "model_type")
    within = {k: v for k, v in settings_of(architecture).items() if k not in of_precond}
    channels = architecture.img_channels
    made.model._init_kwargs = {**within, "in_channels": channels, "out_channels": channels}
    return made.eval().requires_grad_(False)


def _converted(module: nn.Module, class_name: str | None = None) -> Any:
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: _converted(child) for name, child in module.items()})
    name = type(module).__name__
    made = persistent(class_name or CLASSES.get(name, name), base=nn.Module)
    parts = {**module._parameters, **module._buffers}
    if "Conv" in name:
        parts = {**CONV, **parts}
    for key, value in parts.items():
        if key in module._buffers or key == "resample_filter":
            made.register_buffer(key, value)
        else:
            setattr(made, key, None if value is None else nn.Parameter(value))
    if name == "Block":
        made.skip, made.num_heads, made.skip_scale = None, module.heads, np.sqrt(0.5)
        made._init_kwargs = {"skip_scale": np.sqrt(0.5), "init": {"init_mode": "xavier_uniform"}}
    for key, child in module._modules.items():
        setattr(made, key, _converted(child))
    return made


def snapshot(network: Any) -> dict[str, Any]:
    """What EDM's training loop writes."""
    return {
        "ema": network,
        "loss_fn": persistent("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
        "augment_pipe": persistent("AugmentPipe", p=0.12, xflip=1e8, yflip=1),
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", xflip=False),
    }


# --- small ones ---------------------------------------------------------------------------

DDPMPP = EDMArchitecture(
    model_type="SongUNet",
    img_resolution=8,
    img_channels=3,
    label_dim=4,
    augment_dim=9,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
    dropout=0.13,
)
NCSNPP = ncsnpp(replace(DDPMPP, label_dim=0))
ADM = EDMArchitecture(
    model_type="DhariwalUNet",
    img_resolution=8,
    img_channels=3,
    label_dim=4,
    model_channels=16,
    channel_mult=(1, 4),
    num_blocks=1,
    attn_resolutions=(4,),
)
ALL = {"ddpmpp": DDPMPP, "ncsnpp": NCSNPP, "adm": ADM}


def random_state(architecture: EDMArchitecture, seed: int = 0) -> dict[str, Tensor]:
    """Weights none of which is zero; the filters are as the architecture has them."""
    torch.manual_seed(seed)
    state = EDM(architecture).state_dict()
    for name, tensor in state.items():
        if not name.endswith(("resample_filter", "freqs")):
            state[name] = torch.randn_like(tensor)
    return state


def tiny(
    class_name: str = "EDMPrecond", architecture: EDMArchitecture = DDPMPP, **settings: Any
) -> nn.Module:
    """A small network, as published; `settings` stand in for those it was made with."""
    given = {**settings_of(architecture), **settings}
    return published(architecture, random_state(architecture), class_name, **given)
