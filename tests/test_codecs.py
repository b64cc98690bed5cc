"""Codecs: pixels to network latents and back, and what is told when a file is missing."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from sid_scale.codecs import (
    STABILITY_MEAN,
    STABILITY_STD,
    CodecError,
    IdentityCodec,
    VAECodec,
    normalisation,
    open_codec,
    stability_vae,
)
from sid_scale.demo.digits import digit_images
from sid_scale.demo.prepare import TEACHER
from sid_scale.networks.folder import load_network
from tests.devices import DEVICE, copies_from_host


def shipped_codec() -> VAECodec:
    codec = open_codec(load_network(TEACHER).codec, beside=TEACHER)
    assert isinstance(codec, VAECodec)
    return codec


def test_identity_is_exact():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    codec = IdentityCodec()
    stored = codec.encode(images)
    assert stored.shape[1:] == codec.stored_shape((3, 8, 8))
    assert str(stored.dtype).removeprefix("torch.") in codec.stored_dtypes
    latents = codec.sample(stored, partial(torch.randn, 4))
    assert latents.abs().max() <= 1
    assert torch.equal(codec.decode(latents), images)


def test_pixels_are_rounded_as_published():
    """EDM and SiD scale by 127.5, shift by 128 and cut what is behind the point."""
    step = 1 / 127.5
    edges = {
        -1.0: 0,  # 0.5
        -1 + 0.49 * step: 0,  # 0.99
        -1 + 0.51 * step: 1,  # 1.01
        -step: 127,
        -0.01 * step: 127,  # 127.99: the nearest would be 128
        0.0: 128,
        0.99 * step: 128,
        1.0: 255,  # 255.5
        1 - 0.51 * step: 254,  # 254.99
        -1 - 0.51 * step: 0,
        -1.5: 0,
        1.5: 255,
        -1e30: 0,
        1e30: 255,
        -math.inf: 0,
        math.inf: 255,
    }
    images = torch.tensor(list(edges)).expand(1, 3, 1, -1)
    for dtype in (torch.float32, torch.float64):
        decoded = IdentityCodec().decode(images.to(dtype))
        assert decoded.dtype == torch.uint8
        assert decoded[0, 0, 0].tolist() == list(edges.values())


@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (2, 1), (4, 3)])
def test_grey_and_transparent_pixels_are_shown_in_three_colours(channels: int, colours: int):
    images, codec = torch.rand(2, channels, 4, 4), IdentityCodec()
    assert codec.stored_shape((channels, 4, 4)) == (channels, 4, 4)
    expected = codec.decode(images[:, :colours].repeat(1, 3 // colours, 1, 1))
    assert torch.equal(codec.decode(images), expected)


def test_pixels_of_more_channels_are_refused():
    with pytest.raises(CodecError, match="5 channels"):
        IdentityCodec().stored_shape((5, 4, 4))
    with pytest.raises(CodecError, match="5 channels"):
        IdentityCodec().decode(torch.zeros(1, 5, 4, 4))


def test_vae_brings_digits_there_and_back():
    codec, (images, _) = shipped_codec(), digit_images()
    stored = codec.encode(images[:200])
    latents = codec.sample(stored, partial(torch.randn, 200))
    decoded = codec.decode(latents)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == images[:200].shape
    assert (decoded.float() - images[:200].float()).abs().mean() < 8


def test_network_latents_have_the_teachers_scale():
    codec, (images, _) = shipped_codec(), digit_images()
    stored = codec.encode(images)
    latents = codec.sample(stored, partial(torch.randn, len(stored)))
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.02
    std = latents.std(dim=(0, 2, 3))
    torch.testing.assert_close(std, torch.full_like(std, 0.5), rtol=0.02, atol=0)


def test_sampling_copies_to_a_device_once(tmp_path: Path):
    """A copy from the host would wait for all that the device still has to do."""
    codec = stability_vae(tmp_path)
    stored, normal = torch.empty(2, 8, 3, 3, device=DEVICE), partial(torch.empty, 2, device=DEVICE)
    with copies_from_host() as first:
        codec.sample(stored, normal)
    with copies_from_host() as later:
        codec.sample(stored, normal)
    assert first
    assert later == []


def test_sampling_needs_no_vae_and_follows_edm2s_normalisation(tmp_path: Path):
    codec = stability_vae(tmp_path / "not there")
    mean = torch.tensor(STABILITY_MEAN)[None, :, None, None].expand(2, 4, 3, 3)
    std = torch.tensor(STABILITY_STD)[None, :, None, None].expand(2, 4, 3, 3)
    noise = torch.randn(2, 4, 3, 3)
    stored = torch.cat([mean, std], dim=1)
    assert stored.shape[1:] == codec.stored_shape((4, 3, 3))
    latents = codec.sample(stored, lambda *shape: noise.reshape(2, *shape))
    torch.testing.assert_close(latents, 0.5 * noise, rtol=1e-4, atol=1e-5)


def test_description_makes_the_codec_again():
    codec = shipped_codec()
    again = open_codec(codec.describe())
    assert again.describe() == codec.describe()
    again.check()


def test_normalisation_brings_any_latents_to_sigma_data():
    scale, bias = normalisation([2.0, -1.0], [4.0, 0.25])
    assert [m * k + b for m, k, b in zip([2.0, -1.0], scale, bias)] == [0, 0]
    assert [s * k for s, k in zip([4.0, 0.25], scale)] == [0.5, 0.5]


@pytest.mark.faults
def test_a_missing_vae_says_what_is_wanted(tmp_path: Path):
    codec = stability_vae(tmp_path)
    for use in (codec.check, lambda: codec.decode(torch.zeros(1, 4, 2, 2))):
        with pytest.raises(CodecError, match=r"no config\.json there.*sd-vae-ft-mse"):
            use()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "jpeg"}, "unknown codec 'jpeg'"),
        ({"kind": "vae", "vae": "x"}, "lacks scale, bias"),
    ],
)
def test_a_bad_description_is_named(description, message):
    with pytest.raises(CodecError, match=message):
        open_codec(description)
