"""Frozen feature networks: what they see, and where their weights come from."""

import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate

from sid_scale.networks import features
from sid_scale.networks.features import (
    FEATURE_NETWORKS,
    FeatureNetwork,
    FeatureNetworkError,
    build_feature_network,
    load_feature_network,
    register_feature_network,
)
from sid_scale.networks.features.timm_networks import OLDEST
from tests.conftest import ROOT
from tests.timm_beside import make_timm_importable

VGG, LITE, DEIT = "vgg16_bn", "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
PUBLISHED = {  # mean and std, then (channels, pixels) of each map
    VGG: (IMAGENET, [(128, 112), (256, 56), (512, 28), (512, 14)]),
    LITE: (HALF, [(24, 56), (40, 28), (112, 14), (320, 7)]),
    DEIT: (IMAGENET, [(96, 56), (192, 28), (384, 14), (768, 7)]),
}
every_network = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture(scope="module", autouse=True)
def _timm() -> None:
    make_timm_importable()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something is asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def built(_timm: None) -> Callable[[str], FeatureNetwork]:
    """The networks with random weights of seed 0, each made once."""
    made: dict[str, FeatureNetwork] = {}

    def network(name: str) -> FeatureNetwork:
        if name not in made:
            made[name] = build_feature_network(name, seed=0)
        return made[name]

    return network


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def weights(network: FeatureNetwork) -> dict[str, Tensor]:
    return dict(network.pretrained().state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what they see -------------------------------------------------------------------------


def vgg_by_hand(vgg: Any, x: Tensor) -> Iterator[Tensor]:
    """torchvision's layers 0 to 42, cut before layers 13, 23 and 33, which pool."""
    for begin, end in [(0, 13), (13, 23), (23, 33), (33, 43)]:
        x = vgg.features[begin:end](x)
        yield x


def lite_by_hand(lite: Any, x: Tensor) -> Iterator[Tensor]:
    """The stem with the first two stages, the third, the next two, and the last two."""
    x = lite.bn1(lite.conv_stem(x))
    for begin, end in [(0, 2), (2, 3), (3, 5), (5, 7)]:
        x = lite.blocks[begin:end](x)
        yield x


def deit_by_hand(deit: Any, x: Tensor) -> Iterator[Tensor]:
    """The patches' tokens after every third block, without the two that lead."""
    patches = deit.patch_embed(x)
    first = torch.cat([deit.cls_token, deit.dist_token], dim=1).expand(len(x), -1, -1)
    tokens = torch.cat([first, patches], dim=1) + deit.pos_embed
    for i, block in enumerate(deit.blocks):
        tokens = block(tokens)
        if i % 3 == 2:
            yield tokens[:, 2:].transpose(1, 2).unflatten(2, (14, 14))


BY_HAND = {VGG: vgg_by_hand, LITE: lite_by_hand, DEIT: deit_by_hand}


@every_network
@torch.no_grad()
def test_maps_are_the_published_ones(built, images, name: str):
    (mean, std), shapes = PUBLISHED[name]
    network = built(name)
    maps = network(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, size, size) for c, size in shapes]
    assert network.channels == tuple(c for c, _ in shapes)

    x = ((images + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    x = interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    by_hand = list(BY_HAND[name](network.pretrained(), x))
    if name == DEIT:
        by_hand = [make(tokens) for make, tokens in zip(network.pyramid, by_hand)]
    for found, expected in zip(maps, by_hand, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_pyramid_of_tokens_is_drawn_first_by_torchs_own_initialisation(built):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        narrow = [nn.Conv2d(768, channels, 1) for channels in (96, 192, 384, 768)]
        resample = [
            nn.ConvTranspose2d(96, 96, 4, stride=4),
            nn.ConvTranspose2d(192, 192, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(768, 768, 3, stride=2, padding=1),
        ]
    pyramid = nn.ModuleList(nn.Sequential(*pair) for pair in zip(narrow, resample))
    assert same(built(DEIT).pyramid.state_dict(), pyramid.state_dict())


@every_network
def test_gradients_of_gradients_reach_the_images(built, images, name: str):
    x = images[:1].clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # as R1 asks for
        total = sum(m.square().mean() for m in built(name)(x))
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert gradient.abs().sum() > 0
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@every_network
def test_nothing_is_ever_trained(built, name: str):
    network = built(name).train()
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


@every_network
def test_the_meta_device_counts_without_memory(name: str):
    with torch.device("meta"):
        network = build_feature_network(name, seed=0)
        maps = network(torch.empty(2, 3, 64, 64))
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert [(m.shape[1], m.shape[2]) for m in maps] == PUBLISHED[name][1]


# --- random weights ------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed(built):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again, other = (build_feature_network(LITE, seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(again.state_dict(), built(LITE).state_dict())
    assert not same(other.state_dict(), again.state_dict())


# --- weights from files --------------------------------------------------------------------


@every_network
def test_a_file_of_the_whole_classifier_is_loaded(built, images, name: str, tmp_path: Path):
    import timm

    with torch.device("meta"):
        classifier = timm.create_model(name, pretrained=False).state_dict()
    draws = torch.Generator().manual_seed(1)
    state = {
        key: torch.rand(tensor.shape, generator=draws) + 0.5
        for key, tensor in classifier.items()
        if tensor.numel() < 5e6  # VGG's hidden layers of the head are 400 MB
    }
    save_file(state, tmp_path / "model.safetensors")
    network = load_feature_network(name, tmp_path / "model.safetensors", seed=0, device="cpu")
    found, random = weights(network), built(name).state_dict()
    assert found.keys() == state.keys() & found.keys() != state.keys()
    assert all(torch.equal(found[key], state[key].to(found[key])) for key in found)
    assert not any(p.requires_grad for p in network.parameters())
    # What is no part of the file depends on the seed alone.
    fixed = {key for key in random if not key.startswith("backbone.")}
    assert all(torch.equal(network.state_dict()[key], random[key]) for key in fixed)
    assert len(fixed) == (14 if name == DEIT else 0)


def test_any_floating_point_dtype_is_loaded_and_counters_may_be_absent(built, tmp_path: Path):
    state = {k: v.half() for k, v in weights(built(LITE)).items() if "num_batches" not in k}
    save_file(state, tmp_path / "half.safetensors")
    found = weights(load_feature_network(LITE, tmp_path / "half.safetensors", 0, "cpu"))
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(found[key], state[key].float()) for key in state)


def change(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """A file's weights with one fault."""
    if what == "missing":
        del state["bn1.bias"]
    elif what == "unknown":
        state["blocks.7.0.bn1.weight"] = torch.ones(1)
    elif what == "shape":
        state["bn1.bias"] = torch.zeros(8)
    elif what == "integers":
        state["bn1.bias"] = torch.zeros(32, dtype=torch.int8)
    elif what == "not finite":
        state["bn1.bias"][3] = torch.nan
    return state


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "not this network's weights: missing bn1.bias"),
        ("unknown", "not this network's weights: unknown 'blocks.7.0.bn1.weight'"),
        ("shape", "not this network's weights: bn1.bias has shape [8], not [32]"),
        ("integers", "not this network's weights: bn1.bias is I8, not one of F64, F32, F16, BF16"),
        ("not finite", "not this network's weights: not finite: bn1.bias"),
    ],
)
def test_other_weights_are_refused_by_name(built, tmp_path: Path, what: str, message: str):
    file = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in weights(built(LITE)).items()}
    save_file(change(state, what), file)
    refused(file, message)


def refused(file: Path, message: str) -> None:
    """One line says which network, which file, what is wrong, and where a right one is."""
    where = re.escape(f"feature network {LITE}: {file}: {message}")
    source = re.escape("`hf download timm/tf_efficientnet_lite0.in1k model.safetensors")
    with pytest.raises(FeatureNetworkError, match=f"^{where}.*{source}") as error:
        load_feature_network(LITE, file, seed=0, device="cpu")
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


def test_another_networks_file_is_refused(tmp_path: Path):
    file = tmp_path / "vgg.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, file)
    missing = "missing conv_stem.weight; missing bn1.weight; missing bn1.bias; missing "
    refused(file, f"not this network's weights: {missing}")


def test_files_that_cannot_be_read_are_refused(built, tmp_path: Path):
    refused(tmp_path / "model.safetensors", "no such file")
    refused(tmp_path, "not a file")
    file = tmp_path / "model.safetensors"
    save_file(weights(built(LITE)), file)
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:100], b"PK\3\4 a pickle", b""):
        file.write_bytes(content)
        refused(file, "not a whole safetensors file")


# --- libraries and names -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("timm", None, r'it needs timm, which is not installed: pip install "sid-scale\[gdd\]"'),
        ("timm", "raise RuntimeError('no nms\\n there')", r"timm cannot be imported \(no nms"),
        ("timm", "__version__ = '0.5.4'", r"timm 0\.5\.4 is older than 1\.0\.31: pip install"),
    ],
)
def test_a_library_that_is_absent_or_broken_is_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, content: str, message: str
):
    monkeypatch.setitem(sys.modules, module, None)
    if content:
        monkeypatch.delitem(sys.modules, module)
        (tmp_path / f"{module}.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FeatureNetworkError, match=f"^feature network {VGG}: {message}") as error:
        build_feature_network(VGG, seed=0)
    assert "\n" not in str(error.value)


def test_the_oldest_timm_is_the_one_that_the_package_asks_for():
    assert f'gdd = ["timm>={OLDEST},<2"]' in (ROOT / "pyproject.toml").read_text()


def test_an_unknown_name_is_refused_with_those_that_there_are():
    for use in (features.source, lambda name: build_feature_network(name, 0)):
        with pytest.raises(FeatureNetworkError, match=r"'vgg' is none of vgg16_bn, tf_eff.*, deit"):
            use("vgg")


@every_network
def test_a_source_names_the_licence_and_the_command(name: str):
    assert re.fullmatch(
        rf"timm's ({name}\.\w+) \((BSD-3-Clause|Apache-2\.0)\): "
        r"`hf download timm/\1 model\.safetensors --local-dir \1`",
        features.source(name),
    )


class Edges(FeatureNetwork):
    """One convolution, trained elsewhere."""

    source = "the moon"
    channels = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.convolution(images),)


def test_a_network_from_outside_is_built_and_loaded_by_its_name(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, tmp_path: Path
):
    monkeypatch.setattr(features, "FEATURE_NETWORKS", dict(FEATURE_NETWORKS))
    register_feature_network("edges", Edges)
    file = tmp_path / "edges.safetensors"
    save_file(build_feature_network("edges", seed=1).state_dict(), file)
    network = load_feature_network("edges", file, seed=2, device="cpu")
    assert torch.equal(network(images)[0], build_feature_network("edges", seed=1)(images)[0])
    with pytest.raises(FeatureNetworkError, match=r"no such file\. .* is the moon$"):
        load_feature_network("edges", tmp_path / "none", seed=0, device="cpu")
