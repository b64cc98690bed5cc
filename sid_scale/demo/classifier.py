"""The pretrained feature network of the digits: a small convolutional classifier.

It stands in for the large networks that are pretrained on ImageNet. A projected discriminator
compares generated and real digits by its features. `train_classifier.py` trains it on the half of
the real digits that the demo's judge does not learn from.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import interpolate

from sid_scale.demo.digits import NUM_CLASSES
from sid_scale.networks.features import FeatureNetwork

SIZE = 16  # pixels, of the images that the convolutions read
DEEPEST = SIZE // 4  # pixels, of the last map


class DigitFeatures(FeatureNetwork):
    """Maps of 8 and 4 pixels.

    Images of any size are resized to 16 pixels first. That doubles the scans, so that the first map
    is as fine as they are, and averages decoded images of 32 pixels in blocks of four.
    The network reads colour, although the digits are grey: a tint changes its features. A third
    map, of 16 pixels, would double the time of an iteration with a discriminator and gain little.
    """

    source: ClassVar[str] = (
        "part of the package, package:demo/assets/classifier/model.safetensors (Apache-2.0)"
    )
    channels = (32, 64)

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.LeakyReLU(0.2))
            for c_in, c_out in zip(inputs, self.channels)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class DigitClassifier(DigitFeatures):
    """The features with the head that they are trained with, which the shipped file holds too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(self.channels[-1] * DEEPEST**2, NUM_CLASSES)

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> logits of the classes, (N, 10)."""
        deepest: Tensor = self(images)[-1]
        classes: Tensor = self.head(deepest.flatten(1))
        return classes
