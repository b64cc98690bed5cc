"""The U-Nets of EDM's pixel networks: DDPM++ and NCSN++ (one of them, by settings), and ADM.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(arXiv 2206.00364), Sec. F. Parameter names are those of EDM's own state dict. The body runs in the
dtype of its input; the embedding runs in float32, as the softmax of attention does.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm.layers import (
    Conv,
    ConvThenDown,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    attend,
)

SONG_EPS, ADM_EPS = 1e-6, 1e-5  # of group normalisation
ADM_HEAD = 64  # channels of a head of attention
LAST_GAIN = 1e-5  # of the last layer of a residual branch: a new network begins with the identity


# --- blocks -------------------------------------------------------------------------------


class Block(nn.Module):
    """Residual block, with optional change of resolution and self-attention.

    (N, in, H, W), embedding (N, embedding) float32 -> (N, out, H', W').

    In SongUNet the embedding is added, and every sum is scaled back to unit variance. In
    DhariwalUNet the embedding scales and shifts, and sums stay as they are.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        config: EDMArchitecture,
        *,
        attention: bool = False,
        resample: str | None = None,
    ):
        super().__init__()
        self.is_song = config.model_type == "SongUNet"
        self.dropout = config.dropout
        self.sum_factor = math.sqrt(0.5) if self.is_song else 1.0
        heads = 1 if self.is_song else out_channels // ADM_HEAD
        self.heads = heads if attention else 0
        eps = SONG_EPS if self.is_song else ADM_EPS
        resampling: dict[str, Any] = {
            "resample": resample,
            "resample_filter": config.resample_filter,
        }

        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv(in_channels, out_channels, 3, **resampling)
        self.affine = Linear(embedding, out_channels * (1 if self.is_song else 2))
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Conv(out_channels, out_channels, 3, gain=LAST_GAIN)
        if resample or in_channels != out_channels:
            has_kernel = in_channels != out_channels or self.is_song
            self.skip = Conv(in_channels, out_channels, int(has_kernel), **resampling)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1, gain=math.sqrt(0.2))
            self.proj = Conv(out_channels, out_channels, 1, gain=LAST_GAIN)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        path = self.skip(x) if hasattr(self, "skip") else x
        x = (self._residual(x, emb) + path) * self.sum_factor
        if self.heads:
            x = (self.proj(attend(self.qkv(self.norm2(x)), self.heads)) + x) * self.sum_factor
        return x

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(emb).to(y.dtype)[:, :, None, None]
        if self.is_song:
            y = self.norm1(y + modulation)
        else:
            scale, shift = modulation.chunk(2, dim=1)
            y = torch.addcmul(shift, self.norm1(y), scale + 1)
        y = F.silu(y)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return self.conv1(y)


# --- the U-Nets ---------------------------------------------------------------------------


class UNet(nn.Module):
    """What the two U-Nets share: resolutions, widths and the way of the skip connections.

    Names of blocks carry their resolution.
    """

    def __init__(self, config: EDMArchitecture, noise_channels: int, first_channels: int):
        super().__init__()
        self.config = config
        self.embedding = config.model_channels * config.channel_mult_emb
        if config.augment_dim:
            self.map_augment = Linear(config.augment_dim, noise_channels, bias=False)
        self.map_layer0 = Linear(noise_channels, self.embedding)
        self.map_layer1 = Linear(self.embedding, self.embedding)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        self.channels = self._add_decoder(self._add_encoder(first_channels))

    # What differs.

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Noise levels (N,), one-hot classes (N, label_dim) or None if the network has none, and
        augmentation labels (N, augment_dim) or None -> (N, embedding), float32."""
        raise NotImplementedError

    def output(self, x: Tensor) -> Tensor:
        """Of the last decoder block's (N, c, H, W) -> (N, C, H, W)."""
        raise NotImplementedError

    def _has_attention(self, resolution: int, *, last: bool) -> bool:
        """Of a decoder block; `last` is its resolution's last."""
        return resolution in self.config.attn_resolutions

    # What is built.

    def _block(self, in_channels: int, out_channels: int, **options: Any) -> Block:
        return Block(in_channels, out_channels, self.embedding, self.config, **options)

    def _add_encoder(self, channels: int) -> list[int]:
        """-> channels of what each part hands to the decoder."""
        config, skips = self.config, []
        image = config.img_channels  # of the path of inputs, in NCSN++
        for level, multiple in enumerate(config.channel_mult):
            resolution = config.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv(config.img_channels, channels, 3)
            else:
                self.enc[f"{name}_down"] = self._block(channels, channels, resample="down")
                if config.encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = ConvThenDown(
                        image, channels, 3,
                        resample="down", resample_filter=config.resample_filter,
                    )  # fmt: skip
                    image = channels
            skips.append(channels)
            for i in range(config.num_blocks):
                out = config.model_channels * multiple
                attention = resolution in config.attn_resolutions
                self.enc[f"{name}_block{i}"] = self._block(channels, out, attention=attention)
                channels = out
                skips.append(channels)
        return skips

    def _add_decoder(self, skips: list[int]) -> int:
        """-> channels of the last block's output."""
        config, channels = self.config, skips[-1]
        for level in reversed(range(len(config.channel_mult))):
            resolution = config.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{name}_in0"] = self._block(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = self._block(channels, channels)
            else:
                self.dec[f"{name}_up"] = self._block(channels, channels, resample="up")
            for i in range(config.num_blocks + 1):
                out = config.model_channels * config.channel_mult[level]
                attention = self._has_attention(resolution, last=i == config.num_blocks)
                self.dec[f"{name}_block{i}"] = self._block(
                    channels + skips.pop(), out, attention=attention
                )
                channels = out
        return channels

    # What is computed.

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Outputs of the encoder's parts, the deepest last."""
        image = x
        skips: list[Tensor] = []
        for name, part in self.enc.items():
            if name.endswith("_aux_residual"):
                x = image = skips[-1] = (x + part(image)) * math.sqrt(0.5)
                continue
            x = part(x, emb) if isinstance(part, Block) else part(x)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        skips = list(skips)
        x = skips[-1]
        for name, part in self.dec.items():
            if isinstance(part, Block):
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = part(x, emb)
        return self.output(x)


class SongUNet(UNet):
    """DDPM++ and, with Fourier features and the residual encoder, NCSN++ (arXiv 2011.13456)."""

    def __init__(self, config: EDMArchitecture):
        noise_channels = config.model_channels * config.channel_mult_noise
        super().__init__(config, noise_channels, config.model_channels)
        self.map_noise = (
            FourierEmbedding(noise_channels)
            if config.embedding_type == "fourier"
            else PositionalEmbedding(noise_channels, endpoint=True)
        )
        if config.label_dim:
            self.map_label = Linear(config.label_dim, noise_channels)
        name = f"{config.img_resolution}x{config.img_resolution}"
        self.dec[f"{name}_aux_norm"] = GroupNorm(self.channels, SONG_EPS)
        self.dec[f"{name}_aux_conv"] = Conv(self.channels, config.img_channels, 3, gain=LAST_GAIN)
        self._last = name

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        emb = torch.cat(self.map_noise(c_noise).chunk(2, dim=1)[::-1], dim=1)  # sines come first
        if labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.config.label_dim))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def output(self, x: Tensor) -> Tensor:
        return self.dec[f"{self._last}_aux_conv"](F.silu(self.dec[f"{self._last}_aux_norm"](x)))

    def _has_attention(self, resolution: int, *, last: bool) -> bool:
        return last and resolution in self.config.attn_resolutions


class DhariwalUNet(UNet):
    """ADM (arXiv 2105.05233)."""

    def __init__(self, config: EDMArchitecture):
        first = config.model_channels * config.channel_mult[0]
        super().__init__(config, config.model_channels, first)
        self.map_noise = PositionalEmbedding(config.model_channels, endpoint=False)
        if config.label_dim:
            self.map_label = Linear(config.label_dim, self.embedding, bias=False)
        self.out_norm = GroupNorm(self.channels, ADM_EPS)
        self.out_conv = Conv(self.channels, config.img_channels, 3, gain=LAST_GAIN)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        emb = self.map_noise(c_noise)
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if labels is not None:
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def output(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))


UNETS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
