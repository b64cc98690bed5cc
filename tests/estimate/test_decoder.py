"""The decoder that losses are counted with has the shapes of the teacher's own."""

from pathlib import Path

import pytest
import torch

from sid_scale.codecs import CodecError
from sid_scale.demo.prepare import TEACHER
from sid_scale.estimate.decoder import decoder
from sid_scale.networks.folder import read_description


def latents(side: int) -> torch.Tensor:
    return torch.empty(2, 4, side, side, device="meta")


def test_a_teacher_that_is_there_is_decoded_by_its_own_vae():
    """That of the digits makes 4 pixels of a latent; the Stability VAE 8."""
    of_digits = decoder(read_description(TEACHER).codec, 4, TEACHER)
    assert of_digits(latents(8)).shape == (2, 3, 32, 32)


def test_one_that_is_not_there_has_the_stability_vae(tmp_path: Path):
    published = decoder({"kind": "vae"}, 4, tmp_path / "edm2-img512-xs-2147483-0.135")
    assert published(latents(16)).shape == (2, 3, 128, 128)


def test_pixels_stay_as_they_are(tmp_path: Path):
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(decoder({"kind": "identity"}, 3, tmp_path)(images), images)


def test_a_folder_that_describes_no_vae_is_named(tmp_path: Path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("[1]")
    codec = {"kind": "vae", "vae": "vae", "scale": [1.0] * 4, "bias": [0.0] * 4}
    with pytest.raises(CodecError, match=r"vae/config\.json describes no VAE"):
        decoder(codec, 4, tmp_path)
