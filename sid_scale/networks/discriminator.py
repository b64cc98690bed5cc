"""The trained part of a projected discriminator: small heads on projected feature maps.

Projected GANs (arXiv 2111.01007, Sec. 3.2): one head a map, all with spectral normalisation. As in
GDD's published runs they stay in training mode, also while the generator learns from them: batch
normalisation takes the statistics of the micro-batch, and each pass is one step of the power
iteration.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from sid_scale.networks.features.projection import projected_channels

T = TypeVar("T")

CLASS_CHANNELS = 64  # of what a class is compared with
SLOPE = 0.2  # of leaky ReLUs
LAST = 4  # pixels, of a head's last convolution
SMALLEST_MAP = LAST  # pixels, of the deepest map of features; what heads end at is as large


class Head(nn.Module):
    """Logits of one map: 4x4 convolutions of stride 2, then a last one without padding.

    With classes, the last one has 64 channels, whose product with the class's embedding is the
    logit.
    """

    def __init__(self, channels: Sequence[int], classes: int, embedding: int):
        super().__init__()
        self.down = nn.Sequential(*map(_halving, channels[:-1], channels[1:]))
        last = nn.Conv2d(channels[-1], CLASS_CHANNELS if classes else 1, LAST, bias=False)
        self.last = spectral_norm(last)
        if classes:
            self.embedding = nn.Embedding(classes, embedding)
            self.gain = ClassGain(embedding, CLASS_CHANNELS)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """A projected map (N, c, h, w) and class indices (N,) -> logits (N, positions)."""
        logits = self.last(self.down(x))
        if condition is not None:
            gains = self.gain(self.embedding(condition))[:, :, None, None]
            logits = (logits * gains).sum(dim=1) / math.sqrt(CLASS_CHANNELS)
        return logits.flatten(1)


class ClassGain(nn.Module):
    """An embedding (N, e) -> gains of channels (N, c): a dense layer of unit variance."""

    def __init__(self, embedding: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, embedding))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, embedded: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(embedded, weight, self.bias), SLOPE) * math.sqrt(2)


class Discriminator(nn.Module):
    """Heads on the projected maps of several sources of features.

    Args:
        channels: source -> of each of its projected maps, the shallowest first, the channels that
            the head takes and has after each halving; see `head_channels`.
        classes: number of classes; 0: logits without a condition.
        embedding: numbers that a class is embedded in.
    """

    def __init__(
        self, channels: Mapping[str, Sequence[Sequence[int]]], classes: int, embedding: int
    ):
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                source: nn.ModuleList(Head(c, classes, embedding) for c in of_heads)
                for source, of_heads in channels.items()
            }
        )

    def forward(self, compute: Callable[["Discriminator"], T]) -> T:
        """What `compute` makes of these heads.

        DeepSpeed puts hooks on what comes out of a forward pass. A gradient that is differentiated
        again is taken inside, where there are none.
        """
        return compute(self)

    def logits(
        self, features: Mapping[str, Sequence[Tensor]], condition: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Projected maps by source -> logits of each source, (N, positions of all its maps)."""
        return tuple(self._logits(source, maps, condition) for source, maps in features.items())

    def _logits(self, source: str, maps: Sequence[Tensor], condition: Tensor | None) -> Tensor:
        heads = cast(nn.ModuleList, self.heads[source])
        logits = [head(x, condition) for head, x in zip(heads, maps, strict=True)]
        return torch.cat(logits, dim=1)

    def train(self, mode: bool = True) -> "Discriminator":
        """Stays in training mode; see the module's docstring."""
        return super().train(True)


def head_channels(levels: int, projected: int, width: int) -> list[list[int]]:
    """Channels of the heads on `levels` projected maps, from the shallowest on.

    Head i halves its map levels - i times, so that all see as large a part of the image; channels
    double from w to 8w: for four maps w, 2w, 4w, 8w; 2w, 4w, 8w; 4w, 8w; 8w.

    Args:
        projected: width of the projection, see `projected_channels`.
        width: w.
    """
    widths = [width * 8 >> max(0, 3 - step) for step in range(4 - levels, 4)]
    taken = projected_channels(levels, projected)
    return [[taken[level], *widths[level:]] for level in range(levels)]


def _halving(before: int, after: int) -> nn.Module:
    convolution = spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1))
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE))
