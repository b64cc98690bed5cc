"""The pieces of EDM's pixel networks: layers that keep their weights, whatever they compute in.

Weights may be stored in any dtype; a layer computes in that of its input. Resampling, attention and
normalisation are those of arXiv 2206.00364 (Sec. F) and the networks it starts from: DDPM++ and
NCSN++ (arXiv 2011.13456, Sec. H) and ADM (arXiv 2105.05233).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sid_scale.networks.denoiser import Float32Buffers

FOURIER_SCALE = 16.0  # standard deviation of NCSN++'s random frequencies
LONGEST_PERIOD = 10_000.0  # of the position embedding


class PositionalEmbedding(nn.Module):
    """Cosines, then sines of a scalar at geometric frequencies. (N,) -> (N, channels), float32.

    Args:
        endpoint: whether the lowest frequency is 1/10000; else it would be the next.
    """

    def __init__(self, channels: int, *, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=x.device)
        freqs = LONGEST_PERIOD ** -(exponents / (half - 1 if self.endpoint else half))
        phases = x.float().outer(freqs)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class FourierEmbedding(Float32Buffers):
    """Cosines, then sines of a scalar at random frequencies. (N,) -> (N, channels), float32."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", FOURIER_SCALE * torch.randn(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        # Phases are hundreds of radians: another order of the factors would round them otherwise.
        phases = x.float().outer(2 * math.pi * self.freqs)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class Linear(nn.Module):
    """A linear layer in float32. (N, in) -> (N, out)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(_xavier(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x, self.weight.float(), bias)


class GroupNorm(nn.Module):
    """Normalises groups of at least four channels, 32 groups at most."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


class Conv(nn.Module):
    """A convolution, after an optional change of resolution by two with a separable filter.

    (N, in, H, W) -> (N, out, H', W').

    Args:
        kernel: 3 or 1; 0 for the change of resolution alone.
        resample: "up", "down" or None.
        resample_filter: taps along one axis.
        gain: of the first weights, over that which keeps the variance.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        resample: str | None = None,
        resample_filter: tuple[int, ...] = (1, 1),
        gain: float = 1.0,
    ):
        super().__init__()
        self.resample = resample
        if kernel:
            self.weight = nn.Parameter(gain * _xavier(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
        if resample:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            self.register_buffer(
                "resample_filter", (taps.outer(taps) / taps.sum() ** 2)[None, None]
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            x = self._filter(x, padding=self._margin)
        elif self.resample == "up":
            x = self._upsample(x)
        if not hasattr(self, "weight"):
            return x
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @property
    def _margin(self) -> int:
        """Pixels that the filter reads beyond each edge."""
        return (self.resample_filter.shape[-1] - 1) // 2

    def _filter(self, x: Tensor, padding: int) -> Tensor:
        """Every second pixel of the filtered image."""
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=channels)

    def _upsample(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        taps = 4 * self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self._margin, groups=channels)


class ConvThenDown(Conv):
    """A convolution, then half the resolution: the inputs that NCSN++ adds at every level."""

    def forward(self, x: Tensor) -> Tensor:
        # The filter reads the convolution's results beyond the edge, too, and adds no zeros.
        weight = self.weight.to(x.dtype)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2 + self._margin)
        return self._filter(x, padding=0) + self.bias.to(x.dtype)[:, None, None]


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of all positions of an image.

    (N, 3 C, H, W), channels ordered by head, channel, then query, key and value, -> (N, C, H, W).
    """
    height, width = qkv.shape[2:]
    q, k, v = rearrange(qkv, "n (h c three) y x -> three n h (y x) c", h=heads, three=3)
    y = F.scaled_dot_product_attention(q, k, v)
    return rearrange(y, "n h (y x) c -> n (h c) y x", y=height, x=width)


def _xavier(*shape: int) -> Tensor:
    """First weights that keep variance forwards and backwards, uniform."""
    return nn.init.xavier_uniform_(torch.empty(*shape))
