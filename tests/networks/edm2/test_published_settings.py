"""What EDM2's objects were made with becomes an architecture, or is refused by name."""

import dataclasses

import numpy as np
import pytest

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.published import read_published
from tests.networks.edm2.published import STATE, published, settings_of, tiny
from tests.networks.published import read, refusal, write
from tests.tiny import ARCHITECTURE

PROTOCOLS = [2, 3, 4, 5]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_architecture_is_that_of_the_arguments(tmp_path, protocol):
    settings = settings_of(ARCHITECTURE)
    first = [settings.pop(name) for name in ("img_resolution", "img_channels")]
    settings["attn_resolutions"] = np.array(settings["attn_resolutions"])
    settings["label_dim"] = np.int32(settings["label_dim"])
    settings["channel_mult"] = tuple(settings["channel_mult"])
    settings["dropout"] = 0.1
    network = published(ARCHITECTURE, STATE, "Precond", *first, **settings)
    read = read_published(write(tmp_path / "net.pkl", {"ema": network}, protocol))
    assert read.architecture == dataclasses.replace(ARCHITECTURE, dropout=0.1)


def test_arguments_that_were_not_given_are_edm2s_defaults(tmp_path):
    architecture = EDM2Architecture(
        img_resolution=16, img_channels=3, label_dim=0, model_channels=16
    )
    given = {"img_resolution": 16, "img_channels": 3, "label_dim": 0, "model_channels": 16}
    network = published(architecture, EDM2(architecture).state_dict(), **given)
    assert read(tmp_path, network).architecture == architecture


@pytest.mark.parametrize(
    "setting",
    [
        {"use_fp16": False},
        {"label_balance": 0.5, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3},
        {"clip_act": 256},
        {"resample_filter": [1, 1]},
        {"channel_mult_noise": None, "channel_mult_emb": None},
        {"channel_mult_noise": 1, "channel_mult_emb": 2},
        {"augment_dim": 0, "label_dropout": 0.0, "use_checkpoint": False, "extra": None},
    ],
)
def test_settings_that_say_what_is_so_here_are_accepted(tmp_path, setting):
    assert read(tmp_path, tiny(**setting)).architecture == ARCHITECTURE


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"label_balance": 0.3}, "label_balance is 0.3; networks here have 0.5"),
        ({"concat_balance": 0.4}, "concat_balance is 0.4; networks here have 0.5"),
        ({"res_balance": 0.5}, "res_balance is 0.5; networks here have 0.3"),
        ({"attn_balance": np.float64(0.5)}, "attn_balance is 0.5; networks here have 0.3"),
        ({"clip_act": None}, "clip_act should be a number"),
        ({"resample_filter": [1, 3, 3, 1]}, "resample_filter is [1, 3, 3, 1]; networks here"),
        ({"resample_filter": [1] * 99}, f"resample_filter is [{'1, ' * 21}; networks here"),
        ({"channel_mult_noise": 2}, "channel_mult_noise is 2; networks here have 1"),
        ({"channel_mult_emb": 4}, "channel_mult_emb is 4; networks here have 2"),
        ({"augment_dim": 9}, "augment_dim is a setting that networks here do not have"),
        ({"img_resolution": 8.5}, "img_resolution is 8.5; it should be an integer"),
        ({"img_channels": "3"}, "img_channels should be a number"),
        ({"num_blocks": -1}, "num_blocks is -1"),
        ({"num_blocks": 10**9}, "num_blocks is 1000000000"),
        ({"channel_mult": [1] * 9}, "channel_mult is out of range"),
        ({"channel_mult": []}, "channel_mult is out of range"),
        ({"channel_mult": 3}, "channel_mult should be a list of numbers"),
        ({"attn_resolutions": [[4]]}, "attn_resolutions should be a number"),
        ({"channels_per_head": 0}, "channels_per_head is out of range"),
        ({"sigma_data": float("nan")}, "sigma_data is out of range"),
        ({"dropout": 1}, "dropout is out of range"),
    ],
)
def test_settings_that_cannot_be_represented_are_refused_by_name(tmp_path, setting, complaint):
    assert complaint in refusal(tmp_path, tiny(**setting))


@pytest.mark.faults
def test_arguments_that_a_network_cannot_do_without(tmp_path):
    network = tiny()
    del network._init_kwargs["label_dim"], network._init_kwargs["img_channels"]
    assert "the network's arguments lack img_channels, label_dim" in refusal(tmp_path, network)
