"""The layers of the Inception network of 2015-12-05, with which FID is defined.

They are those of the TensorFlow graph. It differs from torchvision's Inception3 in the number of
classes, in average pools that leave the padding out, in the largest-value pool of the last block,
and in how images are resized. The names of the weights are the same; see `inception_files.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 299  # pixels along each side
FEATURES, CLASSES = 2048, 1008
EPSILON = 0.001  # of the batch normalisations


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU."""

    name: str
    channels: int
    height: int
    width: int
    stride: int = 1
    padded: bool = True  # with stride 1 as many places come out as go in

    @property
    def padding(self) -> tuple[int, int]:
        return (self.height // 2, self.width // 2) if self.padded else (0, 0)


class Split(NamedTuple):
    """Chains that all see the same; their channels are put together."""

    prefix: str  # of the names of the layers in it
    chains: Sequence["Chain"]


Pool: TypeAlias = Callable[[Tensor], Tensor]
Chain: TypeAlias = Sequence[Conv | Split | Pool]

AVERAGE: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
LARGEST: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVE: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)
POINT = (1, 1)
INNER, HALVING = (3, 3, 1, False), (3, 3, 2, False)


def _numbered(name: str, *convolutions: tuple) -> list[Conv]:
    """Convolutions `name_1`, `name_2` ... with the rest of their fields."""
    return [Conv(f"{name}_{number}", *rest) for number, rest in enumerate(convolutions, 1)]


def _at_35(prefix: str, pooled: int) -> Split:
    """A block at 35x35 places."""
    chains: list[Chain] = [
        [Conv("branch1x1", 64, *POINT)],
        _numbered("branch5x5", (48, *POINT), (64, 5, 5)),
        _numbered("branch3x3dbl", (64, *POINT), (96, 3, 3), (96, 3, 3)),
        [AVERAGE, Conv("branch_pool", pooled, *POINT)],
    ]
    return Split(prefix, chains)


def _at_17(prefix: str, c: int) -> Split:
    """A block at 17x17 places; `c` channels within its chains."""
    chains: list[Chain] = [
        [Conv("branch1x1", 192, *POINT)],
        _numbered("branch7x7", (c, *POINT), (c, 1, 7), (192, 7, 1)),
        _numbered("branch7x7dbl", (c, *POINT), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
        [AVERAGE, Conv("branch_pool", 192, *POINT)],
    ]
    return Split(prefix, chains)


def _at_8(prefix: str, pool: Pool) -> Split:
    """A block at 8x8 places."""

    def both(name: str) -> Split:
        return Split("", [[Conv(f"{name}a", 384, 1, 3)], [Conv(f"{name}b", 384, 3, 1)]])

    chains: list[Chain] = [
        [Conv("branch1x1", 320, *POINT)],
        [*_numbered("branch3x3", (384, *POINT)), both("branch3x3_2")],
        [*_numbered("branch3x3dbl", (448, *POINT), (384, 3, 3)), both("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192, *POINT)],
    ]
    return Split(prefix, chains)


TO_17: list[Chain] = [
    [Conv("branch3x3", 384, *HALVING)],
    _numbered("branch3x3dbl", (64, *POINT), (96, 3, 3), (96, *HALVING)),
    [HALVE],
]
TO_8: list[Chain] = [
    _numbered("branch3x3", (192, *POINT), (320, *HALVING)),
    _numbered("branch7x7x3", (192, *POINT), (192, 1, 7), (192, 7, 1), (192, *HALVING)),
    [HALVE],
]
LAYERS: Chain = [
    Conv("Conv2d_1a_3x3", 32, *HALVING),
    Conv("Conv2d_2a_3x3", 32, *INNER),
    Conv("Conv2d_2b_3x3", 64, 3, 3),
    HALVE,
    Conv("Conv2d_3b_1x1", 80, *POINT),
    Conv("Conv2d_4a_3x3", 192, *INNER),
    HALVE,
    *(_at_35("Mixed_5b.", 32), _at_35("Mixed_5c.", 64), _at_35("Mixed_5d.", 64)),
    Split("Mixed_6a.", TO_17),
    *(_at_17(f"Mixed_6{letter}.", c) for letter, c in zip("bcde", (128, 160, 160, 192))),
    Split("Mixed_7a.", TO_8),
    *(_at_8("Mixed_7b.", AVERAGE), _at_8("Mixed_7c.", LARGEST)),
]


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, as in the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    _collect_shapes(LAYERS, 3, "", shapes)
    return shapes | {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}


def _collect_shapes(chain: Chain, channels: int, prefix: str, shapes: dict[str, Any]) -> int:
    """Adds a chain's; returns how many channels it makes of `channels`."""
    for step in chain:
        if isinstance(step, Conv):
            name = prefix + step.name
            shapes[f"{name}.conv.weight"] = (step.channels, channels, step.height, step.width)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{part}"] = (step.channels,)
            channels = step.channels
        elif isinstance(step, Split):
            inner = prefix + step.prefix
            channels = sum(_collect_shapes(c, channels, inner, shapes) for c in step.chains)
    return channels


class InceptionLayers:
    """The network of weights that `weight_shapes` describes."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self._weights = weights

    def __call__(
        self, images: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = self.features((resize(images, SIZE) - 128) / 128)
        if return_features:
            return features
        bias = None if no_output_bias else self._weights["fc.bias"]
        return F.linear(features, self._weights["fc.weight"], bias).softmax(dim=1)

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, 299, 299), about -1 to 1 -> (N, 2048)."""
        return self._run(LAYERS, x, "").mean(dim=(2, 3))

    def _run(self, chain: Chain, x: Tensor, prefix: str) -> Tensor:
        for step in chain:
            if isinstance(step, Conv):
                x = self._convolve(step, x, prefix + step.name)
            elif isinstance(step, Split):
                inner = prefix + step.prefix
                x = torch.cat([self._run(each, x, inner) for each in step.chains], dim=1)
            else:
                x = step(x)
        return x

    def _convolve(self, step: Conv, x: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, stride=step.stride, padding=step.padding)
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self._weights[f"{name}.bn.{part}"] for part in parts)
        return F.batch_norm(x, mean, variance, scale, shift, eps=EPSILON).relu_()


def resize(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> float32 (N, C, size, size), bilinear as in TensorFlow 1: pixel i of the
    result is what lies at i * H / size, without antialiasing."""
    return _stretch(_stretch(images.float(), 3, size), 2, size)


def _stretch(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    at = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
    low = at.long()
    first, second = (x.index_select(dim, i) for i in (low, (low + 1).clamp(max=length - 1)))
    return first + (second - first) * (at - low).view(-1, *[1] * (3 - dim))
