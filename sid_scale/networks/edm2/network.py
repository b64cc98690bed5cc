"""EDM2's magnitude-preserving U-Net with preconditioning and uncertainty head.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), configuration G. Equation numbers below are that paper's. Parameter
names are those of EDM2's own state dict; the scalar gains are held as shape [1], because
DeepSpeed cannot broadcast a parameter of shape [] (`folder.py` translates).

A module's weights are as the forward pass reads them (layers.py); `forward_scales` says how they
are made of those in files. They may be stored in any dtype. The body of the U-Net runs in
`compute_dtype`; preconditioning, the embedding and the uncertainty head run in float32.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sid_scale.networks.denoiser import Denoiser, Prediction, named_blocks, preconditioning
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.layers import (
    SILU_MAGNITUDE,
    MPConv,
    MPFourier,
    mp_cat,
    normalise_rows,
    sum_factors,
    unit_magnitude,
)

RESIDUAL_BALANCE = 0.3
LABEL_BALANCE = 0.5
# Factors of the path so far and of the branch, wherever a block adds the two.
PATH, BRANCH = sum_factors(RESIDUAL_BALANCE)
NOISE, LABEL = sum_factors(LABEL_BALANCE)  # of the two parts of the embedding
AFTER_SILU = 1 / SILU_MAGNITUDE  # of a layer that reads silu(x): makes it unit variance (Eq. 81)
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
        self.conv_res0 = MPConv(inner, out_channels, (3, 3), AFTER_SILU)
        self.emb_linear = MPConv(embedding, out_channels, (), AFTER_SILU)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3), AFTER_SILU * BRANCH)
        self.path_factor = PATH  # unless the layer before the sum has it
        if in_channels != out_channels and encoder:
            self.conv_skip = MPConv(in_channels, out_channels, (1, 1))
        elif in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, (1, 1), PATH)
            self.path_factor = 1.0
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1), BRANCH)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        path = self.conv_skip(x) if hasattr(self, "conv_skip") else x
        if self.encoder:
            x = path = unit_magnitude(path, dim=1)
        x = torch.add(self._residual(x, emb), path, alpha=self.path_factor)
        if self.heads:
            x = torch.add(self._attention(x), x, alpha=PATH)
        return F.hardtanh(x, -CLIP_ACTIVATION, CLIP_ACTIVATION)

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv_res0(F.silu(x))
        scale = self.emb_linear(emb) * self.emb_gain.to(emb.dtype) + 1
        y = F.silu(y * scale[:, :, None, None])
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return self.conv_res1(y)

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values of unit magnitude (Sec. B.3)."""
        height, width = x.shape[2:]
        qkv = rearrange(
            self.attn_qkv(x), "n (h c three) y x -> three n h (y x) c", h=self.heads, three=3
        )
        # Fused kernels want the channels of a head side by side.
        q, k, v = unit_magnitude(qkv.contiguous(), dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        y = rearrange(y, "n h (y x) c -> n y x (h c)", y=height, x=width)
        return self.attn_proj(y.permute(0, 3, 1, 2))  # (N, C, H, W), channels last in memory


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
        if config.label_dim:
            self.emb_noise = MPConv(levels[0], embedding, (), NOISE)
            label = LABEL * math.sqrt(config.label_dim)  # one-hot classes have this little variance
            self.emb_label = MPConv(config.label_dim, embedding, (), label)
        else:
            self.emb_noise = MPConv(levels[0], embedding, ())

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
        self, x: Tensor, c_noise: Tensor, condition: Tensor | None, decoded: int | None
    ) -> tuple[Tensor | None, list[Tensor]]:
        """-> the raw output (N, C, H, W) of the first `decoded` samples (None: of all), float32,
        or None for none, and the outputs of all encoder blocks."""
        emb = self.embed(c_noise, condition).to(x.dtype)
        skips = self.encode(x, emb)
        if decoded == 0:
            return None, skips
        return self.decode([skip[:decoded] for skip in skips], emb[:decoded]), skips

    def embed(self, c_noise: Tensor, condition: Tensor | None) -> Tensor:
        """Noise level (N,) and classes (N,) -> embedding (N, E), float32; no class: all zeros.

        Layers that read it make it unit variance.
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.label_dim and condition is not None:
            emb = emb + self.emb_label(F.one_hot(condition, self.label_dim).float())
        return F.silu(emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Activations of every encoder block, the deepest last; channels are last in memory,
        as convolutions of a GPU's half precision want them."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
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
        return self.out_conv(x).float() * self.out_gain.float()


_BLOCKS = r"unet\.(enc|dec)\.\d+x\d+_(block\d+|up|down|in\d+)"


class EDM2(Denoiser):
    """The preconditioned denoiser D(x; sigma, class) (Eqs. 2 to 6, 21 and 22)."""

    # Those of blocks, as in EDM's networks.
    weight_groups: ClassVar[Mapping[str, str]] = {
        "convolutions": rf"{_BLOCKS}\.(conv_res0|conv_res1|attn_proj)\.weight",
        "qkv": rf"{_BLOCKS}\.attn_qkv\.weight",
        "skip": rf"{_BLOCKS}\.conv_skip\.weight",
    }

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
        decoded: int | None = None,
    ) -> Prediction:
        """Denoises `x`; see `Denoiser`."""
        x = x.float()
        c = preconditioning(sigma, len(x), self.architecture.sigma_data)
        body_input = (c.c_in * x).to(self.compute_dtype)
        raw, encoded = self.unet(body_input, c.c_noise, condition, decoded)
        denoised = None
        if raw is not None:
            denoised = (c.c_skip * x)[:decoded] + c.c_out[:decoded] * raw
        wanted = tuple(encoded[i] for i in features)
        return Prediction(denoised, self._logvar(c.c_noise), wanted)

    def forward_scales(self) -> dict[str, float]:
        """Of every `MPConv`."""
        modules = self.named_modules()
        return {f"{name}.weight": m.scale for name, m in modules if isinstance(m, MPConv)}

    def forward_form(self, name: str, weight: Tensor) -> Tensor:
        """Rows of an `MPConv` are normalised."""
        layer = self.get_submodule(name.rpartition(".")[0])
        return normalise_rows(weight, layer.scale) if isinstance(layer, MPConv) else weight.float()

    def checkpointable(self) -> Iterator[tuple[nn.Module, int]]:
        """Every residual block and the resolution in its name."""
        return named_blocks((self.unet.enc, self.unet.dec), Block)

    def load_weights(self, state: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Weights in the compute dtype, gains and Fourier frequencies in float32.

        Rounding a weight is noise, rounding a gain scales the output.
        """
        scales = self.forward_scales()
        taken = {}
        for name, tensor in state.items():
            if name in scales:
                taken[name] = self.forward_form(name, tensor).to(device, self.compute_dtype)
            else:
                taken[name] = tensor.to(device, torch.float32, copy=True)
        self.load_state_dict(taken, assign=True)

    def _logvar(self, c_noise: Tensor) -> Tensor | None:
        if not self.architecture.logvar_channels:
            return None
        return self.logvar_linear(self.logvar_fourier(c_noise))[:, :, None, None]
