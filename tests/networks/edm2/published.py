"""Writes networks in the format of EDM2's and SiD's published files.

Their classes reduce themselves to one function with one dict, in which the source of the class's
module and the object's `__dict__` lie. That function and EDM2's EasyDict are needed by name while
a file is written, and only then.
"""

import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.edm2.published import PublishedNetwork, read_edm2
from sid_scale.networks.folder import CheckpointError
from sid_scale.pickles.reader import PickleError
from tests.tiny import ARCHITECTURE, tiny_folder

SOURCE = "import torch\n" * 100  # of a class's module; longer than what is kept in memory


def _reconstruct_persistent_obj(meta):
    return types.SimpleNamespace(**meta)  # the published one runs meta["module_src"] first


class EasyDict(dict):
    """A dict whose entries are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


@contextmanager
def published_code() -> Iterator[None]:
    """Makes the names that published files ask for importable."""
    contents = {
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": EasyDict},
    }
    for name, attributes in contents.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        yield
    finally:
        for name in contents:
            del sys.modules[name]


class Persistent:
    """An object of a persistent class; the class's name is all that a file knows of it."""

    module_source = SOURCE

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.module_source,
            "class_name": type(self).__name__,
            "state": dict(self.__dict__),
        }
        return _reconstruct_persistent_obj, (meta,), None


def persistent(class_name: str, *arguments: Any, base: type = object, **settings: Any) -> Any:
    """An object of a persistent class `class_name`, made with these arguments."""
    made = type(class_name, (Persistent, base), {})()
    made._init_args = arguments
    made._init_kwargs = settings
    return made


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


def write(path: Path, contents: Any, protocol: int = 4) -> Path:
    """Pickles, with the published names in place."""
    with published_code(), path.open("wb") as file:
        pickle.dump(contents, file, protocol)
    return path


# --- a small one, and back ------------------------------------------------------------------

STATE = tiny_folder().state


def tiny(
    class_name: str = "Precond", state: dict[str, Tensor] = STATE, **settings: Any
) -> nn.Module:
    """A small network, as published; `settings` stand in for those it was made with."""
    return published(ARCHITECTURE, state, class_name, **{**settings_of(ARCHITECTURE), **settings})


def read(tmp_path: Path, network: Any, **others: Any) -> PublishedNetwork:
    """What comes back of a network in a file, and of what else it holds."""
    return read_edm2(write(tmp_path / "net.pkl", {"ema": network, **others}))


def refusal(tmp_path: Path, network: Any, **others: Any) -> str:
    """The error that such a file ends in."""
    with pytest.raises((PickleError, CheckpointError)) as caught:
        read(tmp_path, network, **others)
    assert str(tmp_path / "net.pkl") in str(caught.value)
    return str(caught.value)
