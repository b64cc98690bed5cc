"""EDM's augmentation of training images, and the labels that tell the network of it.

Flips, then one affine map of each image: isotropic scale, rotation, anisotropic scale and
translation (arXiv 2206.00364, Sec. F.2; arXiv 2006.06676, App. B). The map samples an image that is
reflected at its borders and upsampled twofold by an orthogonal wavelet filter, whose mirror image
takes the result back: an image that the map leaves in place comes back as it was.

The published code reflects as much of a batch as its most displaced image needs. Here it is always
as much as can be reflected once, so that an image does not depend on its neighbours, and the GPU
is not waited for. Both have the same pixels wherever the published margin holds what is sampled.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sid_scale.diffusion.noise import KeyedNoise

LABELS = 9  # numbers that describe how an image was augmented
# What each transformation's probability is multiplied by: at any probability half of all images
# are flipped from left to right.
XFLIP_MULTIPLIER = 1e8
SCALE_STD = 0.2  # of log2 of the scale
ANISO_STD = 0.2  # of log2 of the anisotropic scale
ANISO_ROTATE_PROBABILITY = 0.5  # that its axes are turned
TRANSLATE_STD = 0.125  # of the image's size
# The low-pass filter of the wavelet sym6 (Daubechies' least asymmetric one of 12 taps).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
BORDER = len(SYM6) // 4  # pixels around an image that the filter needs to take it back


class AugmentationDraws(NamedTuple):
    """What decides how N images are augmented, each (N,), `translate` (N, 2).

    A transformation takes effect where its gate is below the augmentation's probability.
    """

    xflip: Tensor  # bool
    xflip_gate: Tensor  # all gates and angles: uniform in [0, 1)
    yflip: Tensor  # bool
    yflip_gate: Tensor
    scale: Tensor  # unit normal
    scale_gate: Tensor
    rotate: Tensor
    rotate_gate: Tensor
    aniso: Tensor  # unit normal
    aniso_rotate: Tensor
    aniso_gate: Tensor
    aniso_rotate_gate: Tensor  # against ANISO_ROTATE_PROBABILITY
    translate: Tensor  # unit normal, x and y
    translate_gate: Tensor


def draw_augmentation(noise: KeyedNoise, name: str) -> AugmentationDraws:
    """The draws of a micro-batch's images, from the streams "`name` uniform" and "... normal"."""
    uniform = noise.of(f"{name} uniform").uniform(11).unbind(dim=1)
    normal = noise.of(f"{name} normal").normal(4)
    xflip, xflip_gate, yflip, yflip_gate, scale_gate, rotate, rotate_gate = uniform[:7]
    aniso_rotate, aniso_gate, aniso_rotate_gate, translate_gate = uniform[7:]
    return AugmentationDraws(
        xflip=xflip < 0.5,
        xflip_gate=xflip_gate,
        yflip=yflip < 0.5,
        yflip_gate=yflip_gate,
        scale=normal[:, 0],
        scale_gate=scale_gate,
        rotate=rotate,
        rotate_gate=rotate_gate,
        aniso=normal[:, 1],
        aniso_rotate=aniso_rotate,
        aniso_gate=aniso_gate,
        aniso_rotate_gate=aniso_rotate_gate,
        translate=normal[:, 2:],
        translate_gate=translate_gate,
    )


def augment(images: Tensor, draws: AugmentationDraws, probability: float) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), augmented, and their labels (N, 9), both float32.

    Labels: x-flip, y-flip, scale, cos - 1 and sin of the rotation, anisotropic scale times cos and
    sin of its axes' angle, translation in x and y; all are 0 for an image that is left as it is.

    Args:
        probability: of each transformation; 0 leaves all images as they are.
    """
    if probability == 0:
        return images.float(), images.new_zeros(len(images), LABELS, dtype=torch.float32)
    effects = _effects(draws, probability)
    images = torch.where(_per_image(effects.xflip), images.flip(3), images)
    images = torch.where(_per_image(effects.yflip), images.flip(2), images)
    return _sample(images.float(), _affine_map(effects, *images.shape[2:])), _labels(effects)


def mirror_half(images: Tensor, uniform: Tensor) -> Tensor:
    """Images (N, C, H, W); those whose `uniform`, (N,) in [0, 1), is small are mirrored."""
    return torch.where(_per_image(uniform < 0.5), images.flip(3), images)


class _Effects(NamedTuple):
    """What is done to each image; angles in radians, all 0 where nothing is done."""

    xflip: Tensor  # bool
    yflip: Tensor  # bool
    scale: Tensor
    rotate: Tensor
    aniso: Tensor
    aniso_rotate: Tensor
    translate: Tensor  # (N, 2)


def _effects(draws: AugmentationDraws, probability: float) -> _Effects:
    def gated(value: Tensor, gate: Tensor, below: float = probability) -> Tensor:
        return torch.where(gate < below, value, torch.zeros_like(value))

    return _Effects(
        gated(draws.xflip, draws.xflip_gate, XFLIP_MULTIPLIER * probability),
        gated(draws.yflip, draws.yflip_gate),
        gated(draws.scale, draws.scale_gate),
        gated((2 * draws.rotate - 1) * math.pi, draws.rotate_gate),
        gated(draws.aniso, draws.aniso_gate),
        gated(
            (2 * draws.aniso_rotate - 1) * math.pi,
            draws.aniso_rotate_gate,
            ANISO_ROTATE_PROBABILITY,
        ),
        gated(draws.translate, draws.translate_gate[:, None]),
    )


def _labels(effects: _Effects) -> Tensor:
    labels = [
        effects.xflip,
        effects.yflip,
        effects.scale,
        effects.rotate.cos() - 1,
        effects.rotate.sin(),
        effects.aniso * effects.aniso_rotate.cos(),
        effects.aniso * effects.aniso_rotate.sin(),
        *effects.translate.unbind(dim=1),
    ]
    return torch.stack([label.float() for label in labels], dim=1)


def _affine_map(effects: _Effects, height: int, width: int) -> Tensor:
    """Where a pixel of the result is taken from: (N, 2, 3), in pixels from the image's centre."""
    stretch = (ANISO_STD * effects.aniso).exp2()
    linear = _rotation(effects.rotate - effects.aniso_rotate)
    linear = linear * torch.stack([1 / stretch, stretch], dim=1)[:, None, :]
    linear = linear @ _rotation(effects.aniso_rotate)
    linear = linear / (SCALE_STD * effects.scale).exp2()[:, None, None]
    x, y = effects.translate.unbind(dim=1)
    shift = torch.stack([x * (width * TRANSLATE_STD), y * (height * TRANSLATE_STD)], dim=1)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)


def _rotation(angle: Tensor) -> Tensor:
    """(N,) -> (N, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))


def _sample(images: Tensor, affine: Tensor) -> Tensor:
    """Images whose pixels are taken from where `affine`, (N, 2, 3), says; of the same shape."""
    count, channels, height, width = images.shape
    source = F.pad(images, [width - 1, width - 1, height - 1, height - 1], mode="reflect")
    source = _upsampled(source)
    shape = [count, channels, 2 * (height + 2 * BORDER), 2 * (width + 2 * BORDER)]
    grid = F.affine_grid(_normalised(affine, shape, source.shape), shape, align_corners=False)
    return _downsampled(F.grid_sample(source, grid, align_corners=False))


def _normalised(affine: Tensor, to: Sequence[int], source: Sequence[int]) -> Tensor:
    """The map between images of twice the resolution, in units of half their sizes.

    The filter puts pixel i of an image at pixel 2i of the upsampled one, whose centre is therefore
    half a pixel beyond that of the image.
    """
    linear, constant = affine[:, :, :2], affine[:, :, 2]
    constant = 2 * constant + linear.sum(dim=2) / 2 - 0.5
    columns = [
        torch.stack(
            [
                linear[:, row, 0] * (to[3] / size),
                linear[:, row, 1] * (to[2] / size),
                constant[:, row] * (2 / size),
            ],
            dim=1,
        )
        for row, size in ((0, source[3]), (1, source[2]))
    ]
    return torch.stack(columns, dim=1)


def _upsampled(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W)."""
    channels, padding = images.shape[1], len(SYM6) // 2 - 1
    rows, columns = _filters(channels, 2.0, images.device)
    images = F.conv_transpose2d(images, rows, stride=(1, 2), padding=(0, padding), groups=channels)
    return F.conv_transpose2d(images, columns, stride=(2, 1), padding=(padding, 0), groups=channels)


def _downsampled(images: Tensor) -> Tensor:
    """(N, C, 2 (H + 2 BORDER), 2 (W + 2 BORDER)) -> (N, C, H, W)."""
    channels = images.shape[1]
    rows, columns = _filters(channels, 1.0, images.device)
    images = F.conv2d(images[:, :, 1:-1, 1:-1], rows, stride=(1, 2), groups=channels)
    return F.conv2d(images, columns, stride=(2, 1), groups=channels)


@cache
def _filters(channels: int, gain: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The filter along rows and columns; copied to a device once, as a copy waits for it."""
    with torch.inference_mode(mode=False):
        taps = torch.tensor(SYM6, dtype=torch.float64)
        taps = (gain * taps / taps.sum()).float().to(device)
    return (
        taps.expand(channels, 1, 1, -1).contiguous(),
        taps[:, None].expand(channels, 1, -1, -1).contiguous(),
    )


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
