"""What EDM's networks were made with becomes an architecture, or is refused by name."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm.published_settings import read_architecture
from sid_scale.networks.published import read_published
from sid_scale.pickles.reader import PickledObject, PickleError
from tests.networks.edm.published import (
    ADM,
    DDPMPP,
    NCSNPP,
    published,
    random_state,
    settings_of,
    tiny,
)
from tests.networks.published import read, refusal, write

PROTOCOLS = [2, 3, 4, 5]


def described(unet: str, **settings: Any) -> EDMArchitecture:
    """The architecture of a network that was made with these settings."""
    modules = {"model": PickledObject(unet, {})}
    state = {"_modules": modules, "_init_args": [], "_init_kwargs": settings}
    return read_architecture(PickledObject("EDMPrecond", state), (), "net.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_architecture_is_that_of_the_arguments(tmp_path, protocol):
    settings = settings_of(NCSNPP)
    first = [settings.pop(name) for name in ("img_resolution", "img_channels")]
    settings["attn_resolutions"] = np.array(settings["attn_resolutions"])
    settings["channel_mult"] = tuple(settings["channel_mult"])
    settings["num_blocks"] = np.int64(1)
    settings["dropout"] = np.float64(0.25)
    network = published(NCSNPP, random_state(NCSNPP), "EDMPrecond", *first, **settings)
    source = write(tmp_path / "net.pkl", {"ema": network}, protocol)
    expected = dataclasses.replace(NCSNPP, dropout=0.25)
    assert read_published(source).architecture == expected


def test_every_argument_of_the_preconditioning_may_be_positional(tmp_path):
    settings = settings_of(DDPMPP)
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    first = [settings.pop(name) for name in names]
    rest = [0, math.inf, settings.pop("sigma_data"), settings.pop("model_type")]
    network = published(DDPMPP, random_state(DDPMPP), "EDMPrecond", *first, *rest, **settings)
    assert read(tmp_path, network).architecture == DDPMPP


@pytest.mark.parametrize(
    ("model_type", "defaults"),
    [
        ("SongUNet", EDMArchitecture("SongUNet", 32, 3, 0, 0, 128, (1, 2, 2, 2), 4, 4, (16,))),
        (
            "DhariwalUNet",
            EDMArchitecture("DhariwalUNet", 32, 3, 0, 0, 192, (1, 2, 3, 4), 4, 3, (32, 16, 8)),
        ),
    ],
)
def test_arguments_that_were_not_given_are_edms_defaults(model_type, defaults):
    given = {"img_resolution": 32, "img_channels": 3}
    assert described(model_type, **given) == dataclasses.replace(defaults, dropout=0.1)


def test_the_class_of_the_u_net_may_stand_for_the_model_type(tmp_path):
    network = tiny("EDMPrecond_EncoderDecoder", ADM)
    assert type(network.model).__name__ == "DhariwalUNet_EncoderDecoder"
    del network._init_kwargs["model_type"]
    assert read(tmp_path, network).architecture == ADM
    network._init_kwargs["model_type"] = "DhariwalUNet_EncoderDecoder"
    assert read(tmp_path, network).architecture == ADM


@pytest.mark.parametrize(
    "setting",
    [
        {"use_fp16": True},
        {"sigma_min": 0, "sigma_max": math.inf},
        {"sigma_min": 0.002, "sigma_max": 80},
        {"label_dropout": 0.1},
        {"use_checkpoint": False, "extra": None},
    ],
)
def test_settings_that_change_nothing_here_are_accepted(tmp_path, setting):
    assert read(tmp_path, tiny(**setting)).architecture == DDPMPP


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"sigma_min": 0.01}, "sigma_min is 0.01; networks here serve noise from 0.002"),
        ({"sigma_max": 50}, "sigma_max is 50; networks here serve noise up to 80"),
        ({"sigma_max": math.nan}, "sigma_max is nan"),
        ({"sigma_min": None}, "sigma_min should be a number"),
        ({"sigma_data": 0}, "sigma_data is 0"),
        ({"sigma_data": math.inf}, "sigma_data is inf"),
        ({"label_dropout": 2}, "label_dropout is 2, which is no probability"),
        ({"model_type": "DhariwalUNet"}, "model_type is 'DhariwalUNet', but the U-Net's class is"),
        ({"model_type": 7}, "model_type should be a text"),
        ({"encoder_type": "skip"}, "encoder_type is 'skip', none of"),
        ({"decoder_type": "skip"}, "decoder_type is 'skip', none of"),
        ({"embedding_type": ["fourier"]}, "embedding_type should be a text"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter (1, 2, 1) has no even length"),
        ({"resample_filter": []}, "resample_filter have one value at least"),
        ({"logvar_channels": 128}, "logvar_channels is a setting that networks here do not have"),
        ({"channel_mult": []}, "channel_mult"),
        ({"channel_mult": 3}, "channel_mult should be a list of numbers"),
        ({"channel_mult": [1] * 17}, "channel_mult is (1, 1"),
        ({"img_resolution": 8.5}, "img_resolution is 8.5"),
        ({"img_channels": "3"}, "img_channels should be a number"),
        ({"label_dim": True}, "label_dim is True"),
        ({"num_blocks": 10**9}, "num_blocks is 1000000000"),
        (
            {"num_blocks": 64, "channel_mult": [1] * 5, "img_resolution": 64},
            "encoder of 320 blocks",
        ),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"dropout": 1}, "dropout is 1"),
        ({"model_channels": 130}, "130 channels cannot be normalised"),
    ],
)
def test_settings_that_cannot_be_represented_are_refused_by_name(setting, complaint):
    with pytest.raises(PickleError) as caught:
        described("SongUNet", **{**settings_of(DDPMPP), **setting})
    assert str(caught.value).startswith("net.pkl: ")
    assert complaint in str(caught.value)


@pytest.mark.faults
def test_settings_of_the_other_u_net_are_refused(tmp_path):
    network = tiny("EDMPrecond", ADM, resample_filter=[1, 3, 3, 1])
    complaint = "resample_filter is a setting of SongUNet, not of DhariwalUNet"
    assert complaint in refusal(tmp_path, network)


@pytest.mark.faults
def test_arguments_that_a_network_cannot_do_without(tmp_path):
    network = tiny()
    del network._init_kwargs["img_resolution"], network._init_kwargs["img_channels"]
    lacking = "the network's arguments lack img_channels, img_resolution"
    assert lacking in refusal(tmp_path, network)
    del network._init_kwargs
    assert "_init_kwargs should be a dict" in refusal(tmp_path, network)
