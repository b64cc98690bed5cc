"""Weights for EDM's, EDM2's and SiD's own networks: their names, their shapes, the same bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sid_scale.cli import main
from sid_scale.networks.edm2.architecture import from_edm2_shapes
from sid_scale.networks.edm2.silent_logvar import with_silent_logvar
from sid_scale.networks.export import export_network
from sid_scale.networks.folder import CheckpointError, NetworkFolder, load_network, save_network
from tests.conftest import ROOT
from tests.generators.tiny import demo_generator, tiny_generator
from tests.networks.edm.published import DDPMPP, random_state
from tests.programs import python
from tests.vectors import Vectors


@pytest.mark.reference
def test_names_shapes_and_bits_are_edm2s(reference_dir: Path, tmp_path: Path):
    vectors = Vectors(reference_dir / "edm2_forward.npz")
    save_network(tmp_path / "net", NetworkFolder(vectors.config, vectors.state("param.")))
    export_network(load_network(tmp_path / "net"), tmp_path / "out.safetensors")
    exported = load_file(tmp_path / "out.safetensors")
    arrays = np.load(reference_dir / "edm2_forward.npz")
    expected = {k.removeprefix("param."): arrays[k] for k in arrays.files if k.startswith("param.")}
    assert set(exported) == set(expected)
    for name, array in expected.items():
        assert exported[name].shape == array.shape, name
        assert exported[name].numpy().tobytes() == array.tobytes(), name


@pytest.mark.reference
@pytest.mark.parametrize("name", ["edm_songunet_ncsnpp_cond", "edm_dhariwal"])
def test_names_shapes_and_bits_are_edms(reference_dir: Path, tmp_path: Path, name: str):
    vectors = Vectors(reference_dir / f"{name}.npz")
    save_network(tmp_path / "net", NetworkFolder(vectors.config, vectors.state("state.")))
    export_network(load_network(tmp_path / "net"), tmp_path / "out.safetensors")
    exported = load_file(tmp_path / "out.safetensors")
    arrays = np.load(reference_dir / f"{name}.npz")
    expected = {k.removeprefix("state."): arrays[k] for k in arrays.files if k.startswith("state.")}
    assert set(exported) == set(expected)
    for key, array in expected.items():
        assert exported[key].numpy().tobytes() == array.tobytes(), key


@pytest.mark.faults
def test_networks_without_heads_get_no_silent_one(tmp_path: Path, capsys):
    save_network(tmp_path / "net", NetworkFolder(DDPMPP, random_state(DDPMPP)))
    arguments = [str(tmp_path / "net"), str(tmp_path / "out.safetensors"), "--logvar", "128"]
    assert main(["export", *arguments]) == 2
    complaint = "error: --logvar: networks of family edm have no uncertainty head"
    assert capsys.readouterr().err.startswith(complaint)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_read_back_is_the_same_network(tmp_path: Path):
    network = load_network(demo_generator(tmp_path / "g"))
    export_network(network, tmp_path / "new" / "out.safetensors")
    state = from_edm2_shapes(load_file(tmp_path / "new" / "out.safetensors"))
    save_network(tmp_path / "again", NetworkFolder(network.architecture, state))
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("g", "again")]
    assert weights[0] == weights[1]


def test_a_silent_head_is_there_and_says_nothing(tmp_path: Path):
    plain = load_network(tiny_generator(tmp_path / "g"))
    headed = with_silent_logvar(plain, channels=32)
    assert headed.state["logvar_linear.weight"].shape == (1, 32)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 5.0])
    before, after = plain.build()(x, sigma), headed.build()(x, sigma)
    assert torch.equal(after.denoised, before.denoised)
    assert not after.logvar.any()
    assert with_silent_logvar(headed, channels=8) is headed


@pytest.mark.faults
def test_a_file_that_is_there_stays(tmp_path: Path):
    network = load_network(tiny_generator(tmp_path / "g"))
    path = tmp_path / "out.safetensors"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="is there already: --force"):
        export_network(network, path)
    assert path.read_text() == "precious"
    export_network(network, path, replace=True)
    assert set(load_file(path)) == set(network.state)


@pytest.mark.faults
def test_a_place_that_cannot_be_written(tmp_path: Path):
    network = load_network(tiny_generator(tmp_path / "g"))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_network(network, tmp_path / "file" / "out.safetensors")


def test_the_tool(tmp_path: Path):
    folder = tiny_generator(tmp_path / "g")
    tool = [ROOT / "tools" / "export_edm2.py", folder]
    out = tmp_path / "out.safetensors"
    done = python(*tool, out, "--logvar", 16)
    assert done.returncode == 0, done.stderr
    assert "logvar_fourier.freqs" in load_file(out)
    (folder / "config.json").write_text(json.dumps({"format_version": 1}))
    done = python(*tool, out, "--force")
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr
