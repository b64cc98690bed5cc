"""The feature networks of projected discriminators, built by `timm`.

All take images of 224 pixels: others are resized after their normalisation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sid_scale.networks.features import FeatureNetwork

OLDEST = "1.0.31"  # timm that is known to give these maps, as pyproject.toml has it
INSTALL = 'pip install "sid-scale[gdd]"'
SIZE = 224  # pixels, of the images that the networks are pretrained on
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of its images in [0, 1]


def _source(model: str, licence: str) -> str:
    return (
        f"timm's {model} ({licence}): "
        f"`hf download timm/{model} model.safetensors --local-dir {model}`"
    )


def create(model: str, **settings: Any) -> Any:
    """A network of timm's, with random weights.

    Raises:
        ImportError: timm, or torchvision which it needs, cannot be used; says what to do.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError(f"it needs {error.name}, which is not installed: {INSTALL}") from error
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f"timm cannot be imported ({reason}). Most often torchvision is not of the release, or "
            f"for the device, that torch {torch.__version__} is of: install both from one place"
        ) from error
    if Version(timm.__version__) < Version(OLDEST):
        raise ImportError(f"timm {timm.__version__} is older than {OLDEST}: {INSTALL}")
    return timm.create_model(model, pretrained=False, **settings)


class TimmFeatures(FeatureNetwork):
    """A classifier without its head, cut at four depths."""

    model: ClassVar[str]  # timm's name of the architecture and of its weights
    taps: ClassVar[tuple[int, ...]]  # timm's indices of the stages, or blocks, that give the maps
    mean: Tensor  # (3, 1, 1), of the images in [0, 1] that the network is pretrained on
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.backbone = create(self.model)
        self.backbone.prune_intermediate_layers(self.taps, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = ((images + 1) / 2 - self.mean) / self.std
        x = interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return tuple(self.backbone.forward_intermediates(x, self.taps, intermediates_only=True))

    def pretrained(self) -> nn.Module:
        module: nn.Module = self.backbone
        return module


class VGG16(TimmFeatures):
    """Maps at strides 2 to 16: the last activation before each pooling but the first."""

    model = "vgg16_bn.tv_in1k"
    source = _source(model, "BSD-3-Clause")
    channels = (128, 256, 512, 512)
    taps = (1, 2, 3, 4)

    def __init__(self) -> None:
        super().__init__(*IMAGENET)


class EfficientNetLite0(TimmFeatures):
    """Maps at strides 4 to 32: the last block of each stride."""

    model = "tf_efficientnet_lite0.in1k"
    source = _source(model, "Apache-2.0")
    channels = (24, 40, 112, 320)
    taps = (1, 2, 3, 4)

    def __init__(self) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class DeiTBase(TimmFeatures):
    """Maps at strides 4 to 32: the patch tokens after every third block, resampled.

    The layers that make a pyramid of the tokens are random and fixed.
    """

    model = "deit_base_distilled_patch16_224.fb_in1k"
    source = _source(model, "Apache-2.0")
    channels = (96, 192, 384, 768)
    taps = (2, 5, 8, 11)
    width = 768  # of a token

    def __init__(self) -> None:
        to_channels = [nn.Conv2d(self.width, c, 1) for c in self.channels]
        c4, c8, _, c32 = self.channels
        resample = (
            nn.ConvTranspose2d(c4, c4, 4, stride=4),
            nn.ConvTranspose2d(c8, c8, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(c32, c32, 3, stride=2, padding=1),
        )
        super().__init__(*IMAGENET)
        self.pyramid = nn.ModuleList(nn.Sequential(*pair) for pair in zip(to_channels, resample))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = super().forward(images)  # each (N, 768, 14, 14)
        return tuple(make(x) for make, x in zip(self.pyramid, tokens))
