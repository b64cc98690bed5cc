"""Fixed random projections of feature maps (Projected GANs, arXiv 2111.01007, Sec. 3.2).

A discriminator that looks at raw features attends to few of them. Random 1x1 convolutions mix a
map's channels; then every map, from the deepest on, is mixed into the next shallower one.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.networks.features import FeatureNetwork


class RandomProjection(nn.Module):
    """Maps of features -> as many maps, each twice as large; frozen.

    Args:
        channels: of the maps, the shallowest first; each is half as large as the one before.
        width: channels of the first projected map; `projected_channels` has the others'.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        mixed = [width << level for level in range(len(channels))]
        self.mix_channels = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(channels, mixed, strict=True)
        )
        self.mix_scales = nn.ModuleList(
            nn.Conv2d(before, after, 1)
            for before, after in zip(mixed, projected_channels(len(channels), width), strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(N, c_i, h_i, w_i) each -> (N, c'_i, 2 h_i, 2 w_i) each, the shallowest first."""
        mixed = [mix(each) for mix, each in zip(self.mix_channels, maps, strict=True)]
        projected: list[Tensor] = []
        for mix, each in zip(reversed(self.mix_scales), reversed(mixed), strict=True):
            x = each + projected[-1] if projected else each
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            projected.append(mix(x))
        return tuple(reversed(projected))


def projected_channels(levels: int, width: int) -> tuple[int, ...]:
    """Channels of the projected maps, the shallowest first: w, w, 2w, 4w ..."""
    return tuple(width << max(0, level - 1) for level in range(levels))


class ProjectedFeatures(nn.Module):
    """A feature network and its projection: images (N, 3, H, W) in [-1, 1] -> projected maps."""

    def __init__(self, network: FeatureNetwork, projection: RandomProjection):
        super().__init__()
        self.network, self.projection = network, projection

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.projection(self.network(images))
