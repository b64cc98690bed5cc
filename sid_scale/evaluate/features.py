"""What the metrics look at: features of images, and which metric takes which.

    metric              features      of an image
    fid                 inception     2048 numbers of the Inception network (arXiv 1706.08500)
    precision, recall   inception     the same, as guided diffusion has it (arXiv 2105.05233)
    is                  inception_p   its 1008 class probabilities (arXiv 1606.03498)
    fd_dinov2           dinov2        1024 numbers of DINOv2 ViT-L/14 (arXiv 2306.04675)
    fd_pixels           pixels        64: the decoded image in 8x8 grey
    fd_latents          latents       what the network made, in at most 8x8 places

The last two need no detector's file. They see only what is coarse: of two generators of the same
images they distinguish the better, but their values compare with no others.
"""

from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor

from sid_scale.config.parse import nearest
from sid_scale.errors import SidScaleError

INCEPTION, PROBABILITIES, DINOV2 = "inception", "inception_p", "dinov2"
PIXELS, LATENTS = "pixels", "latents"
FEATURES = {
    "fid": INCEPTION,
    "fd_dinov2": DINOV2,
    "is": PROBABILITIES,
    "precision": INCEPTION,
    "recall": INCEPTION,
    "fd_pixels": PIXELS,
    "fd_latents": LATENTS,
}
METRICS = tuple(FEATURES)
FRECHET = ("fid", "fd_dinov2", "fd_pixels", "fd_latents")
NEIGHBOURS = ("precision", "recall")
HIGHER_IS_BETTER = ("is", "precision", "recall")
PLACES = 8  # along each side, in pixels' and latents' features

# uint8 images (N, 3, H, W), or for LATENTS (N, C, h, w) -> features (N, D)
Extract = Callable[[Tensor], Tensor]


class MetricError(SidScaleError):
    """Metrics that cannot be had; the message says which and why."""


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics, each once.

    Raises:
        MetricError: none, or one that does not exist.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise MetricError(f"metrics: there is no {metric!r}{nearest(metric, METRICS)}")
    if not metrics:
        raise MetricError(f"metrics: the list is empty; there are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def features_of(metrics: Sequence[str]) -> tuple[str, ...]:
    """Kinds of features that the metrics need, each once."""
    return tuple(dict.fromkeys(FEATURES[metric] for metric in metrics))


def need_images(kinds: Iterable[str]) -> bool:
    """Whether some of the features are made of decoded images."""
    return any(kind != LATENTS for kind in kinds)


def pixel_features(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float64 (N, 64): averages of the channels over an 8x8 grid of
    places, in [-1, 1]. Where H or W is no multiple of 8, neighbouring places overlap."""
    grey = images.double().mean(dim=1, keepdim=True)
    return F.adaptive_avg_pool2d(grey, PLACES).flatten(1) / 127.5 - 1


def latent_features(latents: Tensor) -> Tensor:
    """(N, C, h, w) -> float32 (N, C * min(h, 8) * min(w, 8)): averages over an 8x8 grid of
    places, or the latents themselves where they are no larger."""
    height, width = (min(size, PLACES) for size in latents.shape[2:])
    return F.adaptive_avg_pool2d(latents.float(), (height, width)).flatten(1)
