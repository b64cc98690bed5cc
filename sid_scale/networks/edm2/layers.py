"""EDM2's magnitude-preserving pieces and its weight normalisation (arXiv 2312.02696).

Activations, weights and updates keep a root-mean-square of one on expectation, by construction.
Equation numbers are that paper's.

A weight has two forms. Training and files know it as the optimizer steps it; the forward pass reads
its rows at unit magnitude, times a constant (Eqs. 47 and 66). The second form changes only when the
first does, so it is made once an update and not in every forward pass: what a module here holds
is the second. Constants that would scale an activation are part of it, as long as no nonlinearity
lies between; gains, which are trained, scale activations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.networks.denoiser import Float32Buffers

EPSILON = 1e-4  # the paper's eps wherever a magnitude divides
SILU_MAGNITUDE = 0.596  # RMS of silu(x) for x ~ N(0, 1), Eq. 81


class UnitMagnitude(torch.autograd.Function):
    """x / (rms(x) + eps) along `dim`; its backward pass in four kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, dim: int) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
        divisor = torch.add(EPSILON, norm, alpha=x.shape[dim] ** -0.5)
        y = x / divisor.to(x.dtype)
        ctx.save_for_backward(y, divisor)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        y, divisor = ctx.saved_tensors
        rms = (divisor - EPSILON).clamp(min=torch.finfo(torch.float32).tiny)
        radial = (grad * y).sum(ctx.dim, keepdim=True, dtype=torch.float32)
        radial = radial * divisor / (rms * y.shape[ctx.dim])
        tangent = torch.addcmul(grad, y, radial.to(y.dtype), value=-1)
        return tangent.div_(divisor.to(y.dtype)), None


def unit_magnitude(x: Tensor, dim: int) -> Tensor:
    """Scales `x` to a root-mean-square of one along `dim` (pixel norm, Eq. 30)."""
    return UnitMagnitude.apply(x, dim)


def normalise_rows(weight: Tensor, scale: float = 1.0) -> Tensor:
    """A dense weight with rows of magnitude `scale` (Eq. 66), float32."""
    rows = weight.float().flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows * (scale / torch.add(EPSILON, norm, alpha=rows.shape[1] ** -0.5))
    return rows.view(weight.shape)


def sum_factors(balance: float) -> tuple[float, float]:
    """Factors of a and b in their blend that keeps unit variance (Eq. 88)."""
    norm = math.hypot(1 - balance, balance)
    return (1 - balance) / norm, balance / norm


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channel concatenation in which both inputs contribute equally (Eq. 103, t = 1/2)."""
    channels_a, channels_b = a.shape[1], b.shape[1]
    if channels_a != channels_b:
        half = math.sqrt((channels_a + channels_b) / 2)
        a, b = a * (half / math.sqrt(channels_a)), b * (half / math.sqrt(channels_b))
    return torch.cat([a, b], 1)


class MPFourier(Float32Buffers):
    """Random Fourier features of a scalar, unit variance (Eq. 75). (N,) -> (N, channels)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(torch.outer(x.float(), self.freqs) + self.phases) * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution (or linear layer, `kernel=()`) whose output has unit magnitude (Eq. 47).

    Its weight is as the forward pass reads it: rows of magnitude `scale`.

    Args:
        factor: of the output; constants before and after the layer that are folded into it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: float = 1.0
    ):
        super().__init__()
        weight = torch.randn(out_channels, in_channels, *kernel)
        self.scale = factor / math.sqrt(weight[0].numel())
        self.weight = nn.Parameter(self.scale * weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
