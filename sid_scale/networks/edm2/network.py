"""EDM2's magnitude-preserving U-Net with preconditioning and uncertainty head.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), configuration G. Equation numbers below are that paper's. Parameter
names are those of EDM2's own state dict; the scalar gains are held as shape [1], because
DeepSpeed cannot broadcast a parameter of shape [] (`folder.py` translates).

Weights may be stored in any dtype; they are always normalised in float32. The body of the
U-Net runs in `compute_dtype`, preconditioning and the uncertainty head in float32.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sid_scale.networks.denoiser import Denoiser, Prediction
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.layers import (
    MPConv,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised_parameters,
    unit_magnitude,
)

RESIDUAL_BALANCE = 0.3
LABEL_BALANCE = 0.5
CLIP_ACTIVATION = 256.0


# --- blocks -------------------------------------------------------------------------------


def downsample(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H/2, W/2), averages of 2x2."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), each value four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Block(nn.Module):
    """Residual block of the encoder or decoder (Fig. 21), with optional self-attention.

    (N, in, H, W), embedding (N, embedding) -> (N, out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        config: EDM2Architecture,
        *,
        encoder: bool,
        attention: bool = False,
        resample=None,
    ):
        super().__init__()
        self.encoder = encoder
        self.resample = resample
        self.dropout = config.dropout
        self.heads = out_channels // config.channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros(1))
        inner = out_channels if encoder else in_channels
        self.conv_res0 = MPConv(inner, out_channels, (3, 3))
        self.emb_linear = MPConv(embedding, out_channels, ())
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        if in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, (1, 1))
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        if self.encoder:
            x = unit_magnitude(self._skip(x), dim=1)
        residual = self._residual(x, emb)
        x = mp_sum(x if self.encoder else self._skip(x), residual, RESIDUAL_BALANCE)
        if self.heads:
            x = mp_sum(x, self._attention(x), RESIDUAL_BALANCE)
        return x.clip(-CLIP_ACTIVATION, CLIP_ACTIVATION)

    def _skip(self, x: Tensor) -> Tensor:
        return self.conv_skip(x) if hasattr(self, "conv_skip") else x

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain.float()) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return self.conv_res1(y)

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values of unit magnitude (Sec. B.3)."""
        height, width = x.shape[2:]
        qkv = rearrange(
            self.attn_qkv(x), "n (h c three) y x -> three n h (y x) c", h=self.heads, three=3
        )
        q, k, v = unit_magnitude(qkv, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(rearrange(y, "n h (y x) c -> n (h c) y x", y=height, x=width))


# --- the U-Net ----------------------------------------------------------------------------


class UNet(nn.Module):
    """EDM2's U-Net (Table 1, configuration G); names of blocks carry their resolution."""

    def __init__(self, config: EDM2Architecture):
        super().__init__()
        self.label_dim = config.label_dim
        levels = [config.model_channels * m for m in config.channel_mult]
        embedding = max(levels)
        self.out_gain = nn.Parameter(torch.zeros(1))
        self.emb_fourier = MPFourier(levels[0])
        self.emb_noise = MPConv(levels[0], embedding, ())
        self.emb_label = MPConv(config.label_dim, embedding, ()) if config.label_dim else None

        def block(name, c_in, c_out, *, attention=False, encoder=False, resample=None):
            (self.enc if encoder else self.dec)[name] = Block(
                c_in, c_out, embedding, config,
                encoder=encoder, attention=attention, resample=resample,
            )  # fmt: skip
            return c_out

        self.enc = nn.ModuleDict()
        skips: list[int] = []  # channels that each encoder block hands to the decoder
        for level, channels in enumerate(levels):
            res = config.img_resolution >> level
            attention = res in config.attn_resolutions
            if level == 0:
                # One input channel more: a constant 1 stands in for the missing biases.
                self.enc[f"{res}x{res}_conv"] = MPConv(config.img_channels + 1, channels, (3, 3))
                c = channels
            else:
                c = block(f"{res}x{res}_down", c, c, encoder=True, resample=downsample)
            skips.append(c)
            for i in range(config.num_blocks):
                c = block(f"{res}x{res}_block{i}", c, channels, attention=attention, encoder=True)
                skips.append(c)

        self.dec = nn.ModuleDict()
        for level, channels in reversed(list(enumerate(levels))):
            res = config.img_resolution >> level
            attention = res in config.attn_resolutions
            if level == len(levels) - 1:
                c = block(f"{res}x{res}_in0", c, c, attention=True)
                c = block(f"{res}x{res}_in1", c, c)
            else:
                c = block(f"{res}x{res}_up", c, c, resample=upsample)
            for i in range(config.num_blocks + 1):
                c = block(f"{res}x{res}_block{i}", c + skips.pop(), channels, attention=attention)
        self.out_conv = MPConv(c, config.img_channels, (3, 3))

    def forward(
        self, x: Tensor, c_noise: Tensor, condition: Tensor | None, decode: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """-> the raw output (N, C, H, W), or None, and the outputs of all encoder blocks."""
        emb = self.embed(c_noise, condition)
        skips = self.encode(x, emb)
        return self.decode(skips, emb) if decode else None, skips

    def embed(self, c_noise: Tensor, condition: Tensor | None) -> Tensor:
        """Noise level (N,) and classes (N,) -> embedding (N, E), float32; no class: all zeros."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            if condition is None:
                one_hot = emb.new_zeros(len(emb), self.label_dim)
            else:
                one_hot = F.one_hot(condition, self.label_dim).float()
            labels = self.emb_label(one_hot * math.sqrt(self.label_dim))
            emb = mp_sum(emb, labels, LABEL_BALANCE)
        return mp_silu(emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Activations of every encoder block, the deepest last."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        skips = list(skips)
        x = skips[-1]
        for name, layer in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop())
            x = layer(x, emb)
        return self.out_conv(x, gain=self.out_gain.float())


class EDM2(Denoiser):
    """The preconditioned denoiser D(x; sigma, class) (Eqs. 2 to 6, 21 and 22)."""

    architecture: EDM2Architecture

    def __init__(self, architecture: EDM2Architecture, compute_dtype: torch.dtype = torch.float32):
        super().__init__(architecture, compute_dtype)
        self.unet = UNet(architecture)
        if architecture.logvar_channels:
            self.logvar_fourier = MPFourier(architecture.logvar_channels)
            self.logvar_linear = MPConv(architecture.logvar_channels, 1, ())

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        *,
        features: tuple[int, ...] = (),
        decode: bool = True,
    ) -> Prediction:
        """Denoises `x`; see `Denoiser`."""
        x = x.float()
        sigma = sigma.float().reshape(-1).expand(len(x))  # (N,)
        c_noise = sigma.log() / 4
        s = sigma[:, None, None, None]
        sigma_data = self.architecture.sigma_data
        c_in = 1 / (s**2 + sigma_data**2).sqrt()

        scaled = (c_in * x).to(self.compute_dtype)
        raw, encoded = self.unet(scaled, c_noise, condition, decode)
        denoised = None
        if raw is not None:
            c_skip = sigma_data**2 / (s**2 + sigma_data**2)
            c_out = s * sigma_data * c_in
            denoised = c_skip * x + c_out * raw.float()
        wanted = tuple(encoded[i] for i in features)
        return Prediction(denoised, self._logvar(c_noise), wanted)

    def normalised_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every `MPConv` weight."""
        return normalised_parameters(self)

    def checkpointable(self) -> Iterator[tuple[nn.Module, int]]:
        """Every residual block and the resolution in its name."""
        for part in (self.unet.enc, self.unet.dec):
            for name, block in part.items():
                if isinstance(block, Block):
                    yield block, int(name.partition("x")[0])

    @torch.no_grad()
    def store_weights_in(self, dtype: torch.dtype) -> None:
        """Stores every `MPConv` weight in `dtype`.

        Gains stay as they are: rounding a weight is noise, rounding a gain scales the output.
        """
        for _, weight in self.normalised_parameters():
            weight.data = weight.to(dtype)

    def _logvar(self, c_noise: Tensor) -> Tensor | None:
        if not self.architecture.logvar_channels:
            return None
        return self.logvar_linear(self.logvar_fourier(c_noise))[:, :, None, None]
