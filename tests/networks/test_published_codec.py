"""The encoder in a published file becomes a codec, or is refused by name."""

import dataclasses

import numpy as np
import pytest

from sid_scale.codecs import stability_vae
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.published import read_published
from sid_scale.pickles.reader import PickleError
from tests.networks.edm2.published import published, settings_of, tiny, vae_encoder
from tests.networks.published import persistent, read, refusal, write
from tests.tiny import ARCHITECTURE

LATENT = dataclasses.replace(ARCHITECTURE, img_channels=4)


def test_the_published_encoder_is_the_stability_codec(tmp_path):
    state = EDM2(LATENT).state_dict()
    network = published(LATENT, state, **settings_of(LATENT))
    expected = stability_vae("stabilityai/sd-vae-ft-mse").describe()
    assert read(tmp_path, network, encoder=vae_encoder()).codec == expected
    assert read(tmp_path, network).codec == expected


def test_an_encoder_of_its_own_settings(tmp_path):
    network = published(LATENT, EDM2(LATENT).state_dict(), **settings_of(LATENT))
    encoder = vae_encoder(
        vae_name="somebody/vae",
        raw_mean=[1, 2, 3, 4],
        raw_std=np.array([1.0, 2.0, 4.0, 8.0]),
        final_mean=[0.25, 0.25, 0.25, 0.25],
        final_std=np.float64(1.0),
    )
    codec = read(tmp_path, network, encoder=encoder).codec
    assert codec == {
        "kind": "vae",
        "vae": "somebody/vae",
        "scale": [1.0, 0.5, 0.25, 0.125],
        "bias": [-0.75, -0.75, -0.5, -0.25],
    }
    source = tmp_path / "net.pkl"
    assert read_published(source, vae="/models/vae").codec == {**codec, "vae": "/models/vae"}


def test_networks_of_pixels_have_the_identity_codec(tmp_path):
    assert read(tmp_path, tiny()).codec == {"kind": "identity"}
    encoder = persistent("StandardRGBEncoder")
    assert read(tmp_path, tiny(), encoder=encoder).codec == {"kind": "identity"}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("encoder", "complaint"),
    [
        (persistent("JPEGEncoder"), "the encoder is of class JPEGEncoder"),
        ("rgb", "encoder should be an object"),
        (vae_encoder(raw_mean="1234"), "raw_mean of the encoder should be a list of numbers"),
        (vae_encoder(raw_mean=[0.0] * 3), "means and stds of the encoder differ in number"),
        (vae_encoder(raw_std=[1, 1, 1, 0]), "raw_std of the encoder is out of range"),
        (vae_encoder(final_mean=float("inf")), "final_mean of the encoder is out of range"),
        (vae_encoder(vae_name=7), "vae_name of the encoder should be a text"),
    ],
)
def test_encoders_that_are_no_codec_here(tmp_path, encoder, complaint):
    assert complaint in refusal(tmp_path, tiny(), encoder=encoder)


@pytest.mark.faults
def test_a_vae_for_pixels_is_a_mistake(tmp_path):
    source = write(tmp_path / "net.pkl", {"ema": tiny()})
    with pytest.raises(PickleError, match="there is no use for VAE /models/vae"):
        read_published(source, vae="/models/vae")
