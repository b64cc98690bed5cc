"""The architecture of EDM's pixel networks: the arguments of its networks under their own names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sid_scale.networks import Architecture, EncoderLevel, check_numbers, unet_levels

if TYPE_CHECKING:
    import torch

    from sid_scale.networks.edm.network import EDM


@dataclass(frozen=True)
class EDMArchitecture(Architecture):
    """DDPM++ and NCSN++ (`SongUNet`) or ADM (`DhariwalUNet`) with EDM's preconditioning.

    What only `SongUNet` has stays at its default in a `DhariwalUNet`.
    """

    family: ClassVar[str] = "edm"

    model_type: str  # "SongUNet" or "DhariwalUNet"
    img_resolution: int
    img_channels: int
    label_dim: int
    augment_dim: int = 0  # augmentation labels; 0: the network takes none
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.0
    embedding_type: str = "positional"  # or "fourier"; of SongUNet, as all that follows
    channel_mult_noise: int = 1
    encoder_type: str = "standard"  # or "residual"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    sigma_data: float = 0.5
    sigma_min: float = 0.0  # what preconditioning is shifted by, see `Architecture.shifted`

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.img_channels, self.img_resolution, self.img_resolution

    def build(self, dtype: torch.dtype | None = None) -> EDM:
        import torch

        from sid_scale.networks.edm.network import EDM

        return EDM(self, dtype or torch.float32)

    def shifted(self, sigma_min: float) -> EDMArchitecture:
        return replace(self, sigma_min=sigma_min)

    def encoder_levels(self) -> tuple[EncoderLevel, ...]:
        return unet_levels(self.model_channels, self.channel_mult, self.num_blocks)

    def check(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r:.64}, none of {choices}")
        check_numbers(self, _RANGES, _LISTS, {"sigma_data": 1 << 14, "sigma_min": 1, "dropout": 1})
        self._check_levels()
        self._check_channels()
        if self.model_type == "DhariwalUNet":
            for name in _SONG_ALONE:
                if getattr(self, name) != getattr(EDMArchitecture, name):
                    raise ValueError(f"{name} is a setting of SongUNet, not of DhariwalUNet")

    def _check_levels(self) -> None:
        if not self.channel_mult or not self.resample_filter:
            raise ValueError("channel_mult and resample_filter have one value at least")
        if len(self.resample_filter) % 2:
            raise ValueError(f"resample_filter {self.resample_filter} has no even length")
        if self.img_resolution % (1 << (len(self.channel_mult) - 1)):
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved "
                f"{len(self.channel_mult) - 1} times"
            )

    def _check_channels(self) -> None:
        is_song = self.model_type == "SongUNet"
        embedded = self.model_channels * (self.channel_mult_noise if is_song else 1)
        if embedded % 2:
            raise ValueError(f"{embedded} channels cannot hold cosines and sines of a noise level")
        for channels in self._normalised_channels():
            groups = min(32, channels // 4)
            if not groups or channels % groups:
                raise ValueError(f"{channels} channels cannot be normalised in {groups} groups")
        for level, multiple in enumerate(() if is_song else self.channel_mult):
            channels, resolution = self.model_channels * multiple, self.img_resolution >> level
            attends = resolution in self.attn_resolutions or level == len(self.channel_mult) - 1
            if attends and channels % max(1, channels // 64):
                raise ValueError(f"{channels} channels cannot be shared by {channels // 64} heads")

    def _normalised_channels(self) -> Iterator[int]:
        """Channels of what residual blocks take and make."""
        widths = [self.model_channels * multiple for multiple in self.channel_mult]
        channels = self.model_channels if self.model_type == "SongUNet" else widths[0]
        skips = []
        for width in widths:
            yield channels
            yield width
            skips += [channels, *[width] * self.num_blocks]
            channels = width
        for width in reversed(widths):
            for _ in range(self.num_blocks + 1):
                yield channels + skips.pop()
                channels = width


_CHOICES = {
    "model_type": ("SongUNet", "DhariwalUNet"),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}
_SONG_ALONE = (
    *("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type"),
    "resample_filter",
)
_LISTS = ("channel_mult", "attn_resolutions", "resample_filter")
_RANGES = {
    "img_resolution": (1, 1 << 14),
    "img_channels": (1, 1 << 10),
    "label_dim": (0, 1 << 24),
    "augment_dim": (0, 1 << 10),
    "model_channels": (2, 1 << 14),
    "channel_mult": (1, 64),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (1, 64),
    "attn_resolutions": (1, 1 << 14),
    "resample_filter": (1, 1 << 10),
}
