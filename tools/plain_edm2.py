"""EDM2's network as its paper has it, with no thought of speed: the benchmark's baseline.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), configuration G. Every forward pass normalises every weight in float32,
attention is two matrix products around a softmax, and nothing is fused. It shares no code with
`sid_scale/networks/edm2/`, so that a change there leaves the baseline what it was. Parameter names
and shapes are those of EDM2's own state dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalise(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Root-mean-square of one along `dim` (Eq. 47)."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = 1e-4 + norm * math.sqrt(norm.numel() / x.numel())
    return x / rms.to(x.dtype)


def normalise_rows(weight: Tensor) -> Tensor:
    """`weight` with output channels of unit root-mean-square, float32."""
    return normalise(weight.float(), tuple(range(1, weight.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596  # Eq. 81


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)  # Eq. 88


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / 2)  # Eq. 103, t = 1/2
    return torch.cat([a * (scale / math.sqrt(n_a)), b * (scale / math.sqrt(n_b))], dim=1)


class Fourier(nn.Module):
    """Random Fourier features (Eq. 75), (N,) -> (N, channels)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(x, self.freqs) + self.phases)


class Conv(nn.Module):
    """Convolution, or with `size` 0 linear layer, that normalises its weights itself (Eq. 47)."""

    def __init__(self, n_in: int, n_out: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *((size, size) if size else ())))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = normalise_rows(self.weight) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """Residual block (Fig. 21); `kind` is enc or dec, `resample` keep, down or up."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_emb: int,
        kind: str,
        resample: str = "keep",
        heads: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.kind, self.resample, self.heads, self.dropout = kind, resample, heads, dropout
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Conv(n_out if kind == "enc" else n_in, n_out, 3)
        self.emb_linear = Conv(n_emb, n_out, 0)
        self.conv_res1 = Conv(n_out, n_out, 3)
        self.conv_skip = Conv(n_in, n_out, 1) if n_in != n_out else None
        self.attn_qkv = Conv(n_out, 3 * n_out, 1) if heads else None
        self.attn_proj = Conv(n_out, n_out, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.kind == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalise(x, (1,))
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        y = self.conv_res1(y)
        if self.kind == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, 0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attend(self.attn_qkv(x))), 0.3)
        return x.clip(-256, 256)

    def _attend(self, y: Tensor) -> Tensor:
        """Cosine attention (Sec. B.3): (N, 3 C, H, W) -> (N, C, H, W)."""
        n, channels, height, width = y.shape
        y = y.reshape(n, self.heads, channels // 3 // self.heads, 3, height * width)
        q, k, v = normalise(y, (2,)).unbind(3)
        weights = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
        return torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(n, -1, height, width)


class UNet(nn.Module):
    """The U-Net (Table 1, configuration G)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int,
        channel_mult: tuple[int, ...],
        num_blocks: int,
        attn_resolutions: tuple[int, ...],
        channels_per_head: int,
        dropout: float,
    ):
        super().__init__()
        widths = [model_channels * multiplier for multiplier in channel_mult]
        n_emb = max(widths)
        self.label_dim = label_dim
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = Fourier(widths[0])
        self.emb_noise = Conv(widths[0], n_emb, 0)
        self.emb_label = Conv(label_dim, n_emb, 0) if label_dim else None

        def block(n_in, n_out, kind, resample="keep", attention=False):
            heads = n_out // channels_per_head if attention else 0
            return Block(n_in, n_out, n_emb, kind, resample, heads, dropout)

        self.enc = nn.ModuleDict()
        n, skips = img_channels + 1, []
        for level, width in enumerate(widths):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv(n, width, 3)
                n = width
            else:
                self.enc[f"{res}x{res}_down"] = block(n, n, "enc", "down")
            skips.append(n)
            for i in range(num_blocks):
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = block(n, width, "enc", attention=attention)
                n = width
                skips.append(n)
        self.dec = nn.ModuleDict()
        for level, width in reversed(list(enumerate(widths))):
            res = img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = block(n, n, "dec", attention=True)
                self.dec[f"{res}x{res}_in1"] = block(n, n, "dec")
            else:
                self.dec[f"{res}x{res}_up"] = block(n, n, "dec", "up")
            for i in range(num_blocks + 1):
                attention = res in attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = block(
                    n + skips.pop(), width, "dec", attention=attention
                )
                n = width
        self.out_conv = Conv(n, img_channels, 3)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None, decode: bool
    ) -> tuple[Tensor | None, Tensor]:
        """-> the raw output, or None without `decode`, and the last encoder activation."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            one_hot = emb.new_zeros(len(x), self.label_dim)
            if labels is not None:
                one_hot = F.one_hot(labels, self.label_dim).to(emb.dtype)
            emb = mp_sum(emb, self.emb_label(one_hot * math.sqrt(self.label_dim)), 0.5)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if "conv" in name else layer(x, emb)
            skips.append(x)
        deepest = x
        if not decode:
            return None, deepest
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop())
            x = layer(x, emb)
        return self.out_conv(x, gain=self.out_gain), deepest


class PlainEDM2(nn.Module):
    """The denoiser D(x; sigma, labels) with its estimate of log variance (Eqs. 2 to 6, 21).

    Args:
        dtype: what the U-Net's body computes in; weights are float32.
        logvar_channels: 0 for none.
        settings: of the U-Net, by EDM2's names.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **settings,
    ):
        super().__init__()
        self.dtype, self.sigma_data = dtype, sigma_data
        self.unet = UNet(**settings)
        self.logvar_fourier = Fourier(logvar_channels) if logvar_channels else None
        self.logvar_linear = Conv(logvar_channels, 1, 0) if logvar_channels else None

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, *, decode: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """(N, C, H, W), sigma (N, 1, 1, 1), classes (N,) or None
        -> denoised or None, logvar (N, 1, 1, 1), last encoder activation."""
        variance = self.sigma_data**2
        c_noise = sigma.flatten().log() / 4
        c_in = 1 / (variance + sigma**2).sqrt()
        raw, deepest = self.unet((c_in * x).to(self.dtype), c_noise, labels, decode)
        logvar = torch.zeros_like(sigma)
        if self.logvar_linear is not None and self.logvar_fourier is not None:
            logvar = self.logvar_linear(self.logvar_fourier(c_noise))[:, :, None, None]
        if raw is None:
            return None, logvar, deepest
        c_skip = variance / (sigma**2 + variance)
        c_out = sigma * self.sigma_data * c_in
        return c_skip * x + c_out * raw.float(), logvar, deepest


@torch.no_grad()
def force_unit_weights(network: nn.Module) -> None:
    """Forced weight normalisation, in place (Sec. 2.3)."""
    for module in network.modules():
        if isinstance(module, Conv):
            module.weight.copy_(normalise_rows(module.weight))
