"""Real handwritten digits: the data set of the demo, and how generated ones are judged.

1,797 scans of 8x8 pixels with values 0 to 16 and ten classes ("Optical Recognition of
Handwritten Digits", UCI; shipped inside scikit-learn, so nothing is downloaded). They are RGB
images here: of 8x8 pixels for a model of pixels, and brought to 32x32 for a latent one. The judge
looks at 8x8 grey, where everything that the scans know is.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sid_scale.evaluate import features

NUM_CLASSES = 10
SCAN_RESOLUTION = 8
RESOLUTION = 32  # that the latent model needs
SCAN_MAXIMUM = 16.0
BACK_PROJECTIONS = 30


def digit_images(resolution: int = RESOLUTION) -> tuple[Tensor, Tensor]:
    """The whole data set: uint8 images (1797, 3, R, R) and int64 labels (1797,).

    `resolution` R is a multiple of 8; at 8 the images are the scans.
    """
    scans, labels = _scans()
    grey = upsample_scans(scans / SCAN_MAXIMUM, resolution // SCAN_RESOLUTION)
    grey = grey.mul(255).round().to(torch.uint8)
    return grey.expand(-1, 3, -1, -1).contiguous(), labels


def upsample_scans(scans: Tensor, factor: int) -> Tensor:
    """(N, 1, 8, 8) in [0, 1] -> smooth (N, 1, 8 f, 8 f) in [0, 1] with the same f x f averages.

    Bilinear upsampling looks well but blurs: its averages are, at factor 4, 0.19 (RMS, in [-1, 1])
    away from the scans. So what is missing is added back, block by block, and clipped, over
    and over (iterative back-projection); after 30 rounds 0.001 is left, less than nearest-
    neighbour copies lose to rounding, and the strokes stay smooth.
    """
    images = F.interpolate(scans, scale_factor=factor, mode="bilinear")
    for _ in range(BACK_PROJECTIONS):
        missing = scans - F.avg_pool2d(images, factor)
        missing = F.interpolate(missing, scale_factor=factor, mode="nearest")
        images = (images + missing).clip(0, 1)
    return images


def pixel_features(images: Tensor) -> np.ndarray:
    """uint8 (N, 3, R, R), R a multiple of 8 -> float64 (N, 64): 8x8 grey averages in [-1, 1].

    Raises:
        ValueError: images of another dtype or shape.
    """
    height, width = images.shape[-2:]
    square = images.ndim == 4 and images.shape[1] == 3 and height == width > 0
    if images.dtype != torch.uint8 or not square or height % SCAN_RESOLUTION:
        raise ValueError(
            f"expected uint8 images of shape (N, 3, R, R), R a multiple of {SCAN_RESOLUTION}, "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    return features.pixel_features(images.cpu()).numpy()


def class_accuracy(images: Tensor, labels: Tensor) -> float:
    """Share of uint8 `images` (N, 3, R, R) in which the judge reads the class in `labels`.

    `labels` are classes (N,). The judge is a support vector machine that has seen the even half
    of the real digits.
    """
    read = _judge().predict(pixel_features(images))
    return float(np.mean(read == labels.cpu().numpy()))


def class_accuracy_real() -> float:
    """The judge's accuracy on the half of the real digits that it has not seen."""
    images, labels = digit_images(SCAN_RESOLUTION)
    return class_accuracy(images[1::2], labels[1::2])


def _scans() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = torch.from_numpy(digits.images)[:, None]  # (1797, 1, 8, 8), 0 to 16
    return scans.float(), torch.from_numpy(digits.target).long()


@cache  # a pure function of the data set; training takes 0.1 s
def _judge() -> Any:
    from sklearn.svm import SVC

    scans, labels = _scans()
    features = (scans[::2] / SCAN_MAXIMUM * 2 - 1).flatten(1).double()
    # gamma "scale" is 1 / (features * variance); C 10 is the usual choice for these digits.
    judge = SVC(kernel="rbf", gamma="scale", C=10.0)
    return judge.fit(features.numpy(), labels[::2].numpy())
