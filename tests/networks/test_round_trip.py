"""From a published file into a folder, out under its names, and in once more: the same bits."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sid_scale.codecs import open_codec
from sid_scale.generators.folder import adopt_vae
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.networks.edm2.architecture import from_edm2_shapes
from sid_scale.networks.export import export_network
from sid_scale.networks.folder import load_network, save_network
from sid_scale.networks.published import import_published
from tests.conftest import ROOT
from tests.generators.tiny import demo_generator
from tests.networks.edm import published as edm
from tests.networks.edm2.published import published, settings_of
from tests.networks.published import write
from tests.programs import python

SID = "EDM_2_Precond_Generator"


def tool(name: str, *arguments: object) -> None:
    done = python(f"tools/{name}.py", *arguments, folder=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_import_export_import_keeps_every_bit(tmp_path: Path, dtype: torch.dtype):
    made = load_network(demo_generator(tmp_path / "made"))
    state = {name: value.to(dtype) for name, value in made.state.items()}
    for number in ("1", "2"):
        network = published(made.architecture, state, SID, **settings_of(made.architecture))
        write(tmp_path / f"{number}.pkl", {"ema": network})
        tool("import_edm2", tmp_path / f"{number}.pkl", tmp_path / number)
        tool("export_edm2", tmp_path / number, tmp_path / f"{number}.safetensors")
        state = from_edm2_shapes(load_file(tmp_path / f"{number}.safetensors"))
        assert {value.dtype for value in state.values()} == {dtype}
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("1", "2"))
    assert first == second


@pytest.mark.parametrize("architecture", edm.ALL.values(), ids=edm.ALL.keys())
def test_import_export_import_keeps_every_bit_of_edms(tmp_path: Path, architecture):
    state = random = edm.random_state(architecture)
    for number in ("1", "2"):
        network = edm.published(architecture, state, **edm.settings_of(architecture))
        write(tmp_path / f"{number}.pkl", edm.snapshot(network))
        import_published(tmp_path / f"{number}.pkl", tmp_path / number)
        out = tmp_path / f"{number}.safetensors"
        export_network(load_network(tmp_path / number), out)
        state = load_file(out)
        assert state.keys() == random.keys()
        assert all(torch.equal(state[name], value) for name, value in random.items())
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("1", "2"))
    assert first == second


def test_the_demos_generator_makes_the_same_digits_after_the_journey(tmp_path: Path):
    made = load_network(demo_generator(tmp_path / "made"))
    network = published(made.architecture, made.state, SID, **settings_of(made.architecture))
    write(tmp_path / "net.pkl", {"ema": network})
    tool("import_edm2", tmp_path / "net.pkl", tmp_path / "imported")
    tool("export_edm2", tmp_path / "imported", tmp_path / "out.safetensors")
    # A published file knows nothing of the demo's VAE: that comes from the folder it was made of.
    back = dataclasses.replace(
        made, state=from_edm2_shapes(load_file(tmp_path / "out.safetensors"))
    )
    save_network(tmp_path / "back", back)
    adopt_vae(tmp_path / "back", open_codec(made.codec, beside=tmp_path / "made"))
    before, after = (
        OneStepGenerator.from_pretrained(tmp_path / folder).generate(range(10), range(10))
        for folder in ("made", "back")
    )
    assert before.float().std() > 30  # digits, not grey
    assert torch.equal(before, after)
