"""What settings of GDD and GDD-I cannot be used together, and what the error says."""

import pytest

from sid_scale.config.parse import ConfigError
from sid_scale.config.run import load_config
from sid_scale.errors import SidScaleError
from sid_scale.methods import build_method
from sid_scale.networks.edm2.sizes import imagenet512

PIXELS, LATENTS = "edm-cifar10-cond-gdd", "edm2-img512-xs-gdd"


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        (PIXELS, "data=null", r"method gdd learns from real data: set data"),
        (PIXELS, "objective.freeze=[qkv]", r"unknown key objective\.freeze; there are"),
        (f"{PIXELS}-i", "objective.freeze=[]", r"objective\.freeze is empty: name groups"),
        (PIXELS, "objective.feature_networks=vgg16_bn", r"expected a group of settings"),
        (PIXELS, "activations.fake_score=checkpoint", r"method gdd are: generator, discriminator"),
        (PIXELS, "activations.teacher=checkpoint", r"method gdd are: generator, discriminator"),
        (LATENTS, "objective.teacher_sigma=null", r"method gdd has nothing to look at images with"),
        (LATENTS, "objective.decoded_crop=16", r"feature_networks look at, and there are none"),
    ],
)
def test_what_contradicts_itself_is_told(preset: str, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(preset, [override])


def test_a_crop_is_no_larger_than_the_latents():
    network = "objective.feature_networks.digits=features/digits.safetensors"
    config = load_config(LATENTS, [network, "objective.decoded_crop=64"])
    build_method(config, imagenet512("xs"))
    config = load_config(LATENTS, [network, "objective.decoded_crop=65"])
    with pytest.raises(SidScaleError, match=r"decoded_crop 65 is more than the 64 of teacher .*xs"):
        build_method(config, imagenet512("xs"))


def test_only_gdd_i_says_what_is_frozen():
    """The settings that a run writes down are those that it has."""
    assert load_config(f"{PIXELS}-i").objective.freeze == ("convolutions",)
    assert not hasattr(load_config(PIXELS).objective, "freeze")
