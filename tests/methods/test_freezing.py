"""Which weights a role's `freeze` is about: groups as published, patterns, and what is refused."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sid_scale.config.parse import ConfigError
from sid_scale.methods import GENERATOR, Role
from sid_scale.methods.freezing import frozen_weights
from sid_scale.methods.gdd import generator_architecture
from sid_scale.networks import Architecture, parameter_count
from sid_scale.networks.edm.network import EDM
from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.networks.edm2.sizes import imagenet512
from tests.tiny import ARCHITECTURE


def frozen(architecture: Architecture, *freeze: str) -> dict[str, int]:
    """Names and sizes of what stays as it is in a network."""
    with torch.device("meta"):
        network = architecture.build()
    names = frozen_weights(Role(GENERATOR, 1e-4, freeze=freeze), network)
    return {name: network.get_parameter(name).numel() for name in names}


class Named(EDM):
    """Only the names of a network's parameters."""

    architecture: Any = TEACHERS["ffhq-64x64-uncond-ve"]

    def __init__(self, names: Iterable[str]):
        torch.nn.Module.__init__(self)
        self._names = list(names)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, torch.nn.Parameter()) for name in self._names)


@pytest.mark.reference
def test_groups_of_edms_networks_are_the_published_levels(reference_dir: Path):
    vectors = np.load(reference_dir / "gdd_losses.npz")
    networks = {key.split(".")[1] for key in vectors.files if key.startswith("freeze.")}
    assert networks
    groups = ("convolutions", "qkv", "skip")
    for network, level in itertools.product(networks, (1, 2, 3)):
        names = vectors[f"freeze.{network}.names"]
        expected = names[vectors[f"freeze.{network}.level{level}"]]
        role = Role(GENERATOR, 1e-4, freeze=groups[:level])
        assert frozen_weights(role, Named(map(str, names))) == list(expected), (network, level)


@pytest.mark.parametrize(
    ("teacher", "millions", "still"),
    [
        ("cifar10-32x32-uncond-ve", 56.40, 47.60),
        ("ffhq-64x64-uncond-ve", 62.76, 52.61),
        ("imagenet-64x64-cond-adm", 295.90, 233.07),
    ],
)
def test_convolutions_of_the_published_teachers(teacher: str, millions: float, still: float):
    architecture = generator_architecture(TEACHERS[teacher])
    assert parameter_count(architecture) / 1e6 == pytest.approx(millions, abs=5e-3)
    found = sum(frozen(architecture, "convolutions").values())
    assert found / 1e6 == pytest.approx(still, abs=5e-3)


def test_groups_of_edm2s_networks_are_the_same_layers_of_its_blocks():
    architecture = imagenet512("xs").headless()
    total = parameter_count(architecture)
    shares = {
        group: sum(frozen(architecture, group).values()) / total
        for group in ("convolutions", "qkv", "skip")
    }
    assert shares == pytest.approx({"convolutions": 0.837, "qkv": 0.075, "skip": 0.034}, abs=5e-4)
    kinds = {name.split(".")[3] for name in frozen(architecture, "convolutions")}
    assert kinds == {"conv_res0", "conv_res1", "attn_proj"}


def test_a_pattern_matches_whole_names_and_joins_groups():
    first = "unet.enc.8x8_conv.weight"
    assert list(frozen(ARCHITECTURE, r"unet\.enc\.8x8_conv\.weight")) == [first]
    joined = frozen(ARCHITECTURE, "skip", r".*8x8_conv\.weight")
    assert joined.keys() == {first} | frozen(ARCHITECTURE, "skip").keys()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            ("convolution",),
            r"'convolution' matches no weight of the generator, of family edm2: name groups of "
            r"weights \(convolutions, qkv, skip\)",
        ),
        (("skip", "8x8_conv"), r"'8x8_conv' matches no weight .* such as unet\.out_gain"),
        (("(",), r"'\(' is neither a group .*\(convolutions, qkv, skip\) nor a regular expression"),
        (("a{99999999999999}",), "nor a regular expression"),
        ((".*",), r"\.\* are all weights of the generator, and none would be left to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused_with_the_groups(freeze, message):
    with pytest.raises(ConfigError, match=f"^freeze: {message}|^freeze: .*{message}"):
        frozen(ARCHITECTURE, *freeze)


@pytest.mark.faults
def test_a_network_of_the_methods_own_has_no_file_to_be_frozen_by():
    own = Role("critic", 1e-4, freeze=(".*",), build=lambda architecture: torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="freeze: the critic is no copy of the teacher"):
        frozen_weights(own, torch.nn.Linear(1, 1))
