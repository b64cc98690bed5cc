"""EDM2's magnitude-preserving pieces and its weight normalisation (arXiv 2312.02696).

Activations, weights and updates keep a root-mean-square of one on expectation, by construction.
Equation numbers are that paper's.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-4  # the paper's eps wherever a magnitude divides
SILU_MAGNITUDE = 0.596  # RMS of silu(x) for x ~ N(0, 1), Eq. 81


def unit_magnitude(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Scales `x` to a root-mean-square of one along `dim` (pixel norm, Eq. 30; Eq. 47)."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = torch.add(EPSILON, norm, alpha=math.sqrt(norm.numel() / x.numel()))
    return x / rms.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps unit variance (Eq. 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Blend of `a` and `b` that keeps unit variance (Eq. 88)."""
    return a.lerp(b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channel concatenation in which both inputs contribute equally (Eq. 103, t = 1/2)."""
    channels_a, channels_b = a.shape[1], b.shape[1]
    half = math.sqrt((channels_a + channels_b) / 2)
    return torch.cat([a * (half / math.sqrt(channels_a)), b * (half / math.sqrt(channels_b))], 1)


class MPFourier(nn.Module):
    """Random Fourier features of a scalar, unit variance (Eq. 75). (N,) -> (N, channels)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def _apply(self, fn, recurse=True):
        # A phase rounded to bfloat16 is another feature: these buffers stay float32 when the
        # network around them is cast.
        exact = self.freqs, self.phases
        super()._apply(fn, recurse)
        if self.freqs.dtype != torch.float32:
            self.freqs, self.phases = (b.to(self.freqs.device) for b in exact)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(torch.outer(x.float(), self.freqs) + self.phases) * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution (or linear layer, `kernel=()`) with weights of unit magnitude (Eq. 47)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan_in = self.weight[0].numel()
        weight = unit_magnitude(self.weight.float(), dim=tuple(range(1, self.weight.ndim)))
        weight = (weight * (gain / math.sqrt(fan_in))).to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


# --- weights ------------------------------------------------------------------------------


def normalised_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that forced weight normalisation acts on: every `MPConv` weight."""
    for prefix, module in network.named_modules():
        if isinstance(module, MPConv):
            yield f"{prefix}.weight", module.weight


@torch.no_grad()
def normalise_weights_(network: nn.Module) -> None:
    """Forced weight normalisation of a dense network, in place (Sec. 2.3, Eq. 66)."""
    for _, weight in normalised_parameters(network):
        weight.copy_(unit_magnitude(weight.float(), dim=tuple(range(1, weight.ndim))))
