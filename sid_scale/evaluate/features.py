"""What the metrics look at: features of images, and which metric takes which.

    metric              features      of an image
    fid, kid, mind      inception     2048 numbers of the Inception network
    precision, recall   inception     the same, as guided diffusion has it (arXiv 2105.05233)
    density, coverage   inception     the same
    is                  inception_p   its 1008 class probabilities (arXiv 1606.03498)
    fd_X, kd_X, mind_X  X             dinov2: 1024 numbers of DINOv2 ViT-L/14 (arXiv 2306.04675)
                                      pixels: 64, the decoded image in 8x8 grey
                                      latents: what the network made, in at most 8x8 places
                                      or an encoder that the user gives: see encoders.py
    fdr                               a mean over the Fréchet distances of all detectors

Pixels and latents need no detector's file. They show only what is coarse: of two generators of the
same images they distinguish the better, but their values compare with no others.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from sid_scale.config.parse import nearest
from sid_scale.errors import SidScaleError

INCEPTION, PROBABILITIES, DINOV2 = "inception", "inception_p", "dinov2"
PIXELS, LATENTS = "pixels", "latents"
FAMILIES = FRECHET, KERNEL, MONGE = "fd_", "kd_", "mind_"  # a kind of features follows
INCEPTION_NAMES = {"fid": FRECHET, "kid": KERNEL, "mind": MONGE}  # of a family on Inception's
NEIGHBOURS = ("precision", "recall", "density", "coverage")
FDR = "fdr"
METRICS = (
    *("fid", "fd_dinov2", FDR, "kid", "kd_dinov2", "mind", "mind_dinov2", "is", *NEIGHBOURS),
    *("fd_pixels", "fd_latents", "kd_pixels", "kd_latents", "mind_pixels", "mind_latents"),
)  # those that need no encoder of the user's
HIGHER_IS_BETTER = ("is", *NEIGHBOURS)
LEAST = {"precision": 4, "recall": 4, "density": 6, "coverage": 6}  # images: k neighbours, itself
PLACES = 8  # along each side, in pixels' and latents' features

# uint8 images (N, 3, H, W), or for LATENTS (N, C, h, w) -> features (N, D)
Extract = Callable[[Tensor], Tensor]


class MetricError(SidScaleError):
    """Metrics that cannot be had; the message says which and why."""


def check_metrics(metrics: Sequence[str], encoders: Collection[str] = ()) -> tuple[str, ...]:
    """The metrics, each once.

    Args:
        encoders: names of those that the user gives.

    Raises:
        MetricError: none, or one that does not exist.
    """
    known = METRICS + tuple(family + name for name in encoders for family in FAMILIES)
    for metric in metrics:
        if metric not in known:
            more = ""
            if metric.startswith(FAMILIES):
                name = metric.partition("_")[2]
                more = f"; --encoder {name}=FILE gives it, if {name} is a network of timm's"
            raise MetricError(f"metrics: there is no {metric!r}{nearest(metric, known)}{more}")
    if not metrics:
        raise MetricError(f"metrics: the list is empty; there are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def family_of(metric: str) -> str:
    """FRECHET, KERNEL or MONGE; empty for other metrics."""
    if metric in INCEPTION_NAMES:
        return INCEPTION_NAMES[metric]
    return next((family for family in FAMILIES if metric.startswith(family)), "")


def kind_of(metric: str) -> str:
    """The kind of features that a metric looks at; FDR looks at none itself."""
    if metric in INCEPTION_NAMES or metric in NEIGHBOURS:
        return INCEPTION
    if metric == "is":
        return PROBABILITIES
    return metric.removeprefix(family_of(metric))


def needs_statistics(metric: str) -> bool:
    """Whether it is compared with the mean and covariance of real features."""
    return family_of(metric) == FRECHET


def needs_real_features(metric: str) -> bool:
    """Whether it is compared with the features of real images themselves."""
    return metric in NEIGHBOURS or family_of(metric) in (KERNEL, MONGE)


def with_fdr_members(metrics: Sequence[str], given: Iterable[str]) -> tuple[str, ...]:
    """The metrics, and behind them the Fréchet distances of which FDR is made, if it is there.

    Args:
        given: kinds of features whose detectors the user gives.

    Raises:
        MetricError: FDR is there, but no detector is.
    """
    if FDR not in metrics:
        return tuple(metrics)
    members = ["fid" if kind == INCEPTION else FRECHET + kind for kind in given]
    if not members:
        raise MetricError(
            f"{FDR} is a mean over detectors, and none is given: name some with --encoder "
            "NAME=FILE, --inception FILE or --dinov2 DIR (in a run's YAML evaluation.encoders ...)"
        )
    return tuple(dict.fromkeys([*metrics, *members]))


def fdr_members(metrics: Iterable[str]) -> list[str]:
    """The Fréchet distances of which FDR is made: all but those that need no detector."""
    return [m for m in metrics if needs_statistics(m) and kind_of(m) not in (PIXELS, LATENTS)]


def features_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """Kinds of features that the metrics need, each once."""
    return tuple(dict.fromkeys(kind_of(metric) for metric in metrics if metric != FDR))


def check_counts(metrics: Iterable[str], num: int, real: Mapping[str, int]) -> None:
    """Makes sure that there are enough images for the metrics.

    Args:
        num: generated images.
        real: metric -> real images, of those that look at real features.

    Raises:
        MetricError: says which metric, how many there are and how many it needs.
    """
    for metric in metrics:
        for count, whose in ((num, "generated"), (real.get(metric, num), "real")):
            if count < (least := LEAST.get(metric, 2)):
                raise MetricError(f"{metric}: {count} {whose} images; it takes at least {least}")


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
