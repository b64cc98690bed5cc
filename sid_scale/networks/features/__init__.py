"""Frozen feature networks: pretrained backbones whose maps a projected discriminator looks at.

A feature network is one class: images in, maps of features out, never trained.
`FEATURE_NETWORKS` finds one by its name; `register_feature_network` adds one from outside the
package. Its weights come from a safetensors file that the user names: nothing is downloaded here.

A network's modules, and the libraries that they need, are imported when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar

import torch
from torch import Tensor, nn

from sid_scale.errors import UsageError
from sid_scale.networks.features.weights import load_weights
from sid_scale.seeding import seeded


class FeatureNetworkError(UsageError):
    """A feature network that cannot be had; the message says which, why and what to do."""


class FeatureNetwork(nn.Module):
    """Base of the feature networks; always in evaluation mode.

    A subclass is made without arguments, by torch's ordinary initialisation. Layers that stay at
    random values are made before the pretrained ones, so that they depend on the seed alone.
    """

    source: ClassVar[str]  # where a file of its weights comes from, and their licence
    channels: ClassVar[tuple[int, ...]]  # of the maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of features, (N, c_i, h_i, w_i), the shallowest first.

        Args:
            images: (N, 3, H, W), float32 in [-1, 1].
        """
        raise NotImplementedError

    def pretrained(self) -> nn.Module:
        """The part whose weights a file holds, under the names of this module's state dict."""
        return self

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in evaluation mode: its normalisations keep their pretrained statistics."""
        return super().train(False)


# --- feature networks by name --------------------------------------------------------------

# Name -> the class, or "module:attribute" of it.
FEATURE_NETWORKS: dict[str, type[FeatureNetwork] | str] = {
    "vgg16_bn": "sid_scale.networks.features.timm_networks:VGG16",
    "tf_efficientnet_lite0": "sid_scale.networks.features.timm_networks:EfficientNetLite0",
    "deit_base_distilled_patch16_224": "sid_scale.networks.features.timm_networks:DeiTBase",
    "digits": "sid_scale.demo.classifier:DigitFeatures",
}


def register_feature_network(name: str, cls: type[FeatureNetwork]) -> None:
    """Adds a feature network under a name."""
    FEATURE_NETWORKS[name] = cls


def source(name: str) -> str:
    """Where a file of the network's weights comes from, and their licence.

    Raises:
        FeatureNetworkError: there is no network of this name.
    """
    return _class(name).source


def channels(name: str) -> tuple[int, ...]:
    """Channels of the network's maps, the shallowest first.

    Raises:
        FeatureNetworkError: there is no network of this name.
    """
    return _class(name).channels


def build_feature_network(name: str, seed: int) -> FeatureNetwork:
    """A frozen network with random weights, on the CPU (on `meta` under that device).

    All that is random is a function of `seed`, on any rank and device. The global random numbers
    are left as they are.

    Raises:
        FeatureNetworkError: there is no network of this name, or its library is not installed.
    """
    cls = _class(name)
    is_meta = torch.get_default_device().type == "meta"
    with seeded(seed), torch.device("meta" if is_meta else "cpu"):
        try:
            network = cls()
        except ImportError as error:
            raise FeatureNetworkError(f"feature network {name}: {error}") from error
    return network.eval().requires_grad_(False)


def load_feature_network(
    name: str, file: Path, seed: int, device: torch.device | str
) -> FeatureNetwork:
    """A frozen network with the weights of a safetensors file.

    Args:
        file: may hold more than the network needs, such as the classifier's last layers.
        seed: of the layers that are no part of the file, as in `build_feature_network`.

    Raises:
        FeatureNetworkError: as there; or the file is missing, damaged or another network's.
    """
    network = build_feature_network(name, seed)
    try:
        load_weights(network.pretrained(), file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FeatureNetworkError(
            f"feature network {name}: {file}: {reason}. A file with its weights is {network.source}"
        ) from error
    return network.to(device)


def _class(name: str) -> type[FeatureNetwork]:
    if name not in FEATURE_NETWORKS:
        raise FeatureNetworkError(
            f"feature network {name!r:.64} is none of {', '.join(FEATURE_NETWORKS)}"
        )
    cls = FEATURE_NETWORKS[name]
    return resolve_name(cls) if isinstance(cls, str) else cls
