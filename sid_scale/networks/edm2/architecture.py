"""EDM2's architecture: the arguments of its network, and the shapes of its weights in files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sid_scale.networks import Architecture, EncoderLevel, check_numbers, unet_levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sid_scale.networks.edm2.network import EDM2


@dataclass(frozen=True)
class EDM2Architecture(Architecture):
    """Architecture of one network; the keyword arguments of EDM2 under their own names."""

    family: ClassVar[str] = "edm2"

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = 64
    logvar_channels: int = 128  # 0: no uncertainty head (a one-step generator has none)
    sigma_data: float = 0.5
    dropout: float = 0.0

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.img_channels, self.img_resolution, self.img_resolution

    def build(self, dtype: torch.dtype | None = None) -> EDM2:
        import torch

        from sid_scale.networks.edm2.network import EDM2

        return EDM2(self, dtype or torch.float32)

    def headless(self) -> EDM2Architecture:
        return replace(self, logvar_channels=0)

    def encoder_levels(self) -> tuple[EncoderLevel, ...]:
        return unet_levels(self.model_channels, self.channel_mult, self.num_blocks)

    def check(self) -> None:
        check_numbers(self, _RANGES, _LISTS, {"sigma_data": math.inf, "dropout": 1})
        if not self.channel_mult:
            raise ValueError("channel_mult is empty")

    def to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gains of shape [1] become []."""
        return to_edm2_shapes(state)

    def from_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gains of shape [] become [1]."""
        return from_edm2_shapes(state)


_LISTS = ("channel_mult", "attn_resolutions")
_RANGES = {
    "img_resolution": (1, 1 << 14),
    "img_channels": (1, 1 << 10),
    "label_dim": (0, 1 << 24),
    "model_channels": (1, 1 << 14),
    "num_blocks": (0, 64),
    "channels_per_head": (1, 1 << 14),
    "logvar_channels": (0, 1 << 14),
    "channel_mult": (1, 64),
    "attn_resolutions": (1, 1 << 14),
}


def to_edm2_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Memory -> disk: gains of shape [1] become []."""
    return {k: v.reshape(()) if k.endswith("_gain") else v for k, v in state.items()}


def from_edm2_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Disk -> memory: gains of shape [] become [1]."""
    return {k: v.reshape(1) if k.endswith("_gain") and not v.ndim else v for k, v in state.items()}
