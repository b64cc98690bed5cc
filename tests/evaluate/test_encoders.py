"""Encoders of timm's: what they see of an image, what they give, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sid_scale.evaluate.detectors import DetectorFiles, open_detectors
from sid_scale.evaluate.encoders import EncoderError, open_encoder
from tests.evaluate.encoders import ATTENTION, CONVNEXT, MEAN, VIT, write_encoder
from tests.timm_beside import make_timm_importable

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _timm() -> None:
    make_timm_importable()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoders")
    for name in (VIT, ATTENTION, MEAN, CONVNEXT):
        write_encoder(place / f"{name}.safetensors", name)
    return place


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), [(VIT, 64), (CONVNEXT, 64)])
def test_features_are_those_before_the_head(
    place: Path, images: torch.Tensor, name: str, size: int
):
    import timm

    file = place / f"{name}.safetensors"
    network = timm.create_model(name).eval()
    network.load_state_dict(load_file(file))
    opened = open_detectors([f"fd_{name}"], DetectorFiles(encoders={name: file}), CPU)
    x = torch.nn.functional.interpolate(images / 255, (160, 160), mode="bicubic", antialias=True)
    tokens = network.forward_features((x - 0.5) / 0.5)
    expected = tokens.mean(dim=(2, 3)) if name == CONVNEXT else tokens[:, 0]
    seen = opened.extract[name](images)
    assert seen.shape == (3, size)
    torch.testing.assert_close(seen, expected)
    assert opened.files[name][0] == str(file)
    assert len(opened.hashes[name]) == 64


@torch.no_grad()
@pytest.mark.parametrize("name", [ATTENTION, MEAN])
def test_a_network_without_a_class_token_pools_as_it_was_trained_to(
    place: Path, images: torch.Tensor, name: str
):
    """Both have a register, which stands first and is no class token; the attention reads it."""
    encoder = open_encoder(name, place / f"{name}.safetensors", CPU)
    network = encoder._network
    tokens = network.forward_features(encoder.prepare(images))
    expected = network.attn_pool(tokens) if name == ATTENTION else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(encoder(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_a_size_behind_the_name_is_what_the_network_sees(
    place: Path, images: torch.Tensor, name: str
):
    file = place / f"{name}.safetensors"
    encoder = open_encoder(f"{name}@64", file, CPU)
    assert encoder.prepare(images).shape == (3, 3, 64, 64)
    assert not torch.equal(encoder(images), open_encoder(name, file, CPU)(images))


def test_an_image_is_resized_with_antialiasing_and_normalised(place: Path):
    pixels = np.random.default_rng(0).integers(90, 160, (256, 256, 3), dtype=np.uint8)
    encoder = open_encoder(VIT, place / f"{VIT}.safetensors", CPU)
    seen = encoder.prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    back = ((seen * 0.5 + 0.5) * 255).permute(1, 2, 0).numpy()
    reference = Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC)
    assert np.abs(back - np.asarray(reference)).max() < 1.5  # Pillow rounds to whole numbers


def test_a_file_may_lack_the_head(place: Path, tmp_path: Path, images: torch.Tensor):
    weights = load_file(place / f"{CONVNEXT}.safetensors")
    bare = {name: value for name, value in weights.items() if not name.startswith("head")}
    save_file(bare, tmp_path / "bare.safetensors")
    a, b = (
        open_encoder(CONVNEXT, file, CPU)(images)
        for file in (place / f"{CONVNEXT}.safetensors", tmp_path / "bare.safetensors")
    )
    assert torch.equal(a, b)


@pytest.mark.faults
def test_what_is_missing_or_something_else_is_named(place: Path, tmp_path: Path):
    vit = place / f"{VIT}.safetensors"
    (tmp_path / "text").write_text("no weights")
    nan = {name: torch.full_like(value, torch.nan) for name, value in load_file(vit).items()}
    save_file(nan, tmp_path / "nan")
    for name, file, match in [
        (VIT, tmp_path / "nowhere", f"encoder {VIT}, .*nowhere: no such file.*hf download timm/"),
        (VIT, tmp_path / "text", "not a whole safetensors file"),
        (VIT, tmp_path / "nan", "not finite"),
        (CONVNEXT, vit, "not this network's weights: missing"),
        ("test_vat", vit, "Unknown model"),
        ("crossvit_tiny_240", write_encoder(tmp_path / "two", "crossvit_tiny_240"), "no one map"),
        ("test_vit.other", vit, "Invalid pretrained tag"),
        (f"{VIT}@0", vit, "expected a name of timm's, or NAME@SIZE"),
        ("hf-hub:timm/test_vit", vit, "expected a name of timm's"),
        ("../test_vit", vit, "expected a name of timm's"),
    ]:
        with pytest.raises(EncoderError, match=match):
            open_encoder(name, file, CPU)
