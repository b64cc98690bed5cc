"""The heads of a discriminator at their published sizes, and what they do in training."""

import pytest
import torch

from sid_scale.networks import features
from sid_scale.networks.discriminator import Discriminator, head_channels
from sid_scale.networks.features.projection import RandomProjection, projected_channels

# Feature network -> pixels of its maps, and logits of an image.
PUBLISHED = {
    "vgg16_bn": ((112, 56, 28, 14), 4 * 11 * 11),
    "tf_efficientnet_lite0": ((56, 28, 14, 7), 4 * 4 * 4),
    "deit_base_distilled_patch16_224": ((56, 28, 14, 7), 4 * 4 * 4),
}
WIDTH = 64


@pytest.mark.parametrize("classes", [0, 1000])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, classes: int):
    sides, logits = PUBLISHED[name]
    channels = features.channels(name)
    with torch.device("meta"):
        heads = Discriminator({name: head_channels(4, WIDTH, WIDTH)}, classes, 320)
        maps = [torch.empty(2, c, side, side) for c, side in zip(channels, sides, strict=True)]
        condition = torch.zeros(2, dtype=torch.long) if classes else None
        projected = RandomProjection(channels, WIDTH)(maps)
        (found,) = heads.logits({name: projected}, condition)
    assert [m.shape[1:] for m in projected] == [
        (c, 2 * side, 2 * side) for c, side in zip(projected_channels(4, WIDTH), sides, strict=True)
    ]
    assert found.shape == (2, logits)
    if not classes:
        assert sum(p.numel() for p in heads.parameters()) / 1e6 == pytest.approx(10.33, abs=5e-3)


def test_widths_are_the_published_ones():
    assert head_channels(4, WIDTH, WIDTH) == [
        [64, 64, 128, 256, 512],
        [64, 128, 256, 512],
        [128, 256, 512],
        [256, 512],
    ]


def test_it_stays_in_training_mode_and_each_pass_is_a_power_iteration():
    torch.manual_seed(0)
    heads = Discriminator({"maps": head_channels(1, 4, 1)}, 0, 8).eval().requires_grad_(False)
    assert all(module.training for module in heads.modules())
    before = {name: buffer.clone() for name, buffer in heads.named_buffers()}
    heads.logits({"maps": [torch.randn(3, 4, 8, 8)]}, None)
    vectors = [name for name in before if name.endswith("_u")]
    assert len(vectors) == 2
    moved = [not torch.equal(heads.get_buffer(name), before[name]) for name in vectors]
    assert any(moved)  # the last convolution has one row, whose direction is found at once
