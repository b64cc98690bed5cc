"""Network folders: what goes in comes out, and damage is told."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sid_scale.networks.folder import (
    CheckpointError,
    load_network,
    save_network,
)
from tests.tiny import tiny_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provenance = {"method": "sida", "images_seen": 5}
    save_network(
        tmp_path / "net",
        dataclasses.replace(tiny_folder(), provenance=provenance),
    )
    return tmp_path / "net"


def test_round_trip_is_exact(folder: Path, tmp_path: Path):
    network = load_network(folder)
    save_network(tmp_path / "again", network)
    again = load_network(tmp_path / "again")
    assert again.architecture == network.architecture
    assert again.provenance == {"method": "sida", "images_seen": 5}
    for name, tensor in network.state.items():
        assert torch.equal(tensor, again.state[name]), name


def test_disk_bears_edm2_shapes_and_memory_deepspeeds(folder: Path):
    on_disk = load_file(folder / "model.safetensors")
    assert on_disk["unet.out_gain"].shape == ()
    assert load_network(folder).state["unet.out_gain"].shape == (1,)


def test_built_network_computes(folder: Path):
    network = load_network(folder).build()
    denoised = network(torch.randn(2, 3, 8, 8), torch.tensor(1.0)).denoised
    assert denoised.shape == (2, 3, 8, 8)
    assert not network.training


@pytest.mark.faults
def test_missing_file_is_named(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors there"):
        load_network(folder)


@pytest.mark.faults
def test_truncated_weights_are_damaged(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(folder)


@pytest.mark.faults
def test_unreadable_description(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a network description"):
        load_network(folder)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_channels", "16"),
        ("img_resolution", 1 << 40),
        ("label_dim", -1),
        ("channels_per_head", 0),
        ("num_blocks", 10**7),
        ("sigma_data", "0.5"),
        ("dropout", 1.5),
        ("channel_mult", []),
        ("attn_resolutions", [4.0]),
        ("attn_resolutions", 4),
        ("label_dim", [4]),
    ],
)
def test_an_architecture_out_of_range_is_named(folder: Path, setting: str, value):
    config = json.loads((folder / "config.json").read_text())
    config["architecture"][setting] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"not a network description: .*{setting}"):
        load_network(folder)


@pytest.mark.faults
def test_foreign_format_version(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        load_network(folder)


@pytest.mark.faults
def test_a_folder_of_the_first_format_is_to_be_imported_anew(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["architecture"]["family"]
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 1}))
    with pytest.raises(CheckpointError, match=r"format version 1.*anew with `sid-scale import`"):
        load_network(folder)


@pytest.mark.faults
def test_weights_of_another_architecture_are_listed(folder: Path):
    network = load_network(folder)
    wider = dataclasses.replace(network.architecture, model_channels=32)
    with pytest.raises(CheckpointError, match=r"unet\.emb_noise\.weight has shape"):
        save_network(folder.with_name("bad"), dataclasses.replace(network, architecture=wider))
    assert not folder.with_name("bad").exists()


@pytest.mark.faults
def test_what_cannot_be_written_leaves_nothing(folder: Path):
    network = dataclasses.replace(load_network(folder), provenance={"when": object()})
    with pytest.raises(TypeError):
        save_network(folder.with_name("bad"), network)
    assert list(folder.parent.iterdir()) == [folder]
