"""Networks as EDM2's training writes them, in the format of `tests/networks/published.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import EDM2
from tests.networks.published import EasyDict, Persistent, persistent
from tests.tiny import ARCHITECTURE, tiny_folder


def published(
    architecture: EDM2Architecture,
    state: Mapping[str, Tensor],
    class_name: str = "Precond",
    *arguments: Any,
    **settings: Any,
) -> nn.Module:
    """A network as EDM2 would pickle it; `settings` are added to those of the architecture.

    `state` has names and shapes as in memory. Without logvar weights there is no such head.
    """
    with torch.device("meta"):
        network = EDM2(architecture)
    headless = not any(name.startswith("logvar") for name in state)
    if headless and architecture.logvar_channels:
        del network.logvar_fourier, network.logvar_linear
    network.load_state_dict(state, assign=True)
    made = _converted(network, class_name)
    made._init_args = arguments
    made._init_kwargs = settings
    return made.eval().requires_grad_(False)


def settings_of(architecture: EDM2Architecture) -> dict[str, Any]:
    """The keyword arguments with which EDM2 would make it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(architecture).items()
    }


def _converted(module: nn.Module, class_name: str | None = None) -> Any:
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: _converted(child) for name, child in module.items()})
    made = persistent(class_name or type(module).__name__, base=nn.Module)
    for name, parameter in module._parameters.items():
        shape = () if name.endswith("_gain") else parameter.shape
        made.register_parameter(name, nn.Parameter(parameter.detach().reshape(shape)))
    for name, buffer in module._buffers.items():
        made.register_buffer(name, buffer)
    for name, child in module._modules.items():
        setattr(made, name, None if child is None else _converted(child))
    for name in ("conv_skip", "attn_qkv", "attn_proj"):  # EDM2 has the attributes in any case
        if type(module).__name__ == "Block" and not hasattr(made, name):
            setattr(made, name, None)
    return made


def vae_encoder(**settings: Any) -> Persistent:
    """EDM2's encoder of latents, with the attributes that it keeps."""
    encoder = persistent("StabilityVAEEncoder", **settings)
    encoder.scale = np.array([0.12, 0.11, 0.13, 0.15], np.float32)
    encoder.batch_size, encoder.final_std, encoder._vae = 8, np.float64(0.5), None
    return encoder


def snapshot(network: Any, encoder: Any = None) -> EasyDict:
    """What EDM2's training loop writes."""
    dataset = EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=True)
    return EasyDict(
        encoder=encoder if encoder is not None else vae_encoder(),
        dataset_kwargs=dataset,
        loss_fn=persistent("EDM2Loss", P_mean=-0.4, P_std=np.float32(1)),
        ema=network,
    )


# --- a small one, and back ------------------------------------------------------------------

STATE = tiny_folder().state


def tiny(
    class_name: str = "Precond", state: dict[str, Tensor] = STATE, **settings: Any
) -> nn.Module:
    """A small network, as published; `settings` stand in for those it was made with."""
    return published(ARCHITECTURE, state, class_name, **{**settings_of(ARCHITECTURE), **settings})
