"""A generator's folder for diffusers: a few small files more, which nothing here runs."""

import json
import re
from pathlib import Path

import pytest
import torch

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from sid_scale.codecs import IdentityCodec
from sid_scale.demo.prepare import TEACHER
from sid_scale.generators.folder import GeneratorError
from sid_scale.networks.folder import load_network
from tests.generators.tiny import demo_generator, save_generator, tiny_generator
from tests.tiny import tiny_network

MODULE = "generator/sid_scale.generators.diffusers_pipeline.py"
PIPELINE = {"model_index.json", "pipeline.py", MODULE}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_generator(tmp_path / "g")


def export(*arguments: object) -> int:
    return main(["export", "--diffusers", *map(str, arguments)])


def test_the_command_writes_what_the_method_writes(folder: Path, tmp_path: Path):
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    (folder / "README.md").write_text("# A card\n")
    assert export(folder, tmp_path / "a") == 0
    written = OneStepGenerator.from_pretrained(folder).to_diffusers(tmp_path / "b")
    assert files(written) == files(tmp_path / "a") == files(folder) | PIPELINE
    for name in files(written):
        assert (written / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    for name in files(folder):
        assert (written / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_generators_own_folder_is_completed_where_it_is(folder: Path):
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    for _ in range(2):
        assert export(folder, folder / "." / "") == 0
        assert files(folder) == before.keys() | PIPELINE
    assert all((folder / name).read_bytes() == content for name, content in before.items())


def test_the_vae_comes_with_it(tmp_path: Path, capsys):
    teacher = load_network(TEACHER)
    elsewhere = demo_generator(tmp_path / "whole") / "vae"
    teacher.codec["vae"] = "/nowhere"
    bare = save_generator(tmp_path / "bare", teacher)
    assert export(bare, tmp_path / "out") == 1
    assert "/bare/vae: no config.json there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export(bare, tmp_path / "out", "--vae", elsewhere) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["codec"]["vae"] == "vae"
    assert export(bare, bare, "--vae", elsewhere) == 0
    for folder in (tmp_path / "out", bare):
        weights = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
        assert weights == (elsewhere / "diffusion_pytorch_model.safetensors").read_bytes()
        index = json.loads((folder / "model_index.json").read_text())
        assert index["vae"] == ["diffusers", "AutoencoderKL"]


def test_what_runs_is_one_line_of_an_import(folder: Path):
    OneStepGenerator.from_pretrained(folder).to_diffusers(folder)
    for name, imported in (("pipeline.py", "OneStepPipeline"), (MODULE, "OneStepNetwork")):
        [line] = (folder / name).read_text().splitlines()
        assert line.startswith(f"from sid_scale.generators.diffusers_pipeline import {imported}  #")


@pytest.mark.faults
def test_nothing_here_runs_the_files_of_a_folder(folder: Path, tmp_path: Path):
    OneStepGenerator.from_pretrained(folder).to_diffusers(folder)
    trap = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    for name in ("pipeline.py", MODULE, "generator/__init__.py", "__init__.py", "config.py"):
        (folder / name).write_text(trap)
    index = json.loads((folder / "model_index.json").read_text())
    index.update(generator=["pipeline", "X"], vae=["pipeline", "X"], _class_name=["pipeline", "X"])
    (folder / "model_index.json").write_text(json.dumps(index))
    generator = OneStepGenerator.from_pretrained(folder)
    assert generator.generate([0], [0]).dtype == torch.uint8
    assert main(["card", str(folder), "--samples", "4"]) == 0
    assert export(folder, tmp_path / "d") == 0
    assert not (tmp_path / "ran").exists()
    assert trap not in (tmp_path / "d" / "pipeline.py").read_text()


@pytest.mark.faults
def test_what_is_there_stays_unless_it_is_to_be_replaced(folder: Path, tmp_path: Path, capsys):
    other = tiny_generator(tmp_path / "other", images_seen=5)
    assert export(folder, other) == 1
    assert re.fullmatch(r"error: .*/other is there already: --force .*\n", capsys.readouterr().err)
    assert load_network(other).provenance["images_seen"] == 5
    assert export(folder, other, "--force") == 0
    assert "images_seen" not in load_network(other).provenance
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    assert export(folder, tmp_path / "mine", "--force") == 1
    assert "is no network folder" in capsys.readouterr().err
    assert files(tmp_path / "mine") == {"letter.txt"}


@pytest.mark.faults
def test_what_diffusers_cannot_have_is_told(folder: Path, tmp_path: Path, capsys):
    assert export(TEACHER, tmp_path / "d") == 1
    assert "no generator" in capsys.readouterr().err
    assert export(folder, tmp_path / "d", "--logvar", "128") == 2
    assert "error: --logvar: diffusers has no use" in capsys.readouterr().err
    assert main(["export", str(folder), str(tmp_path / "w"), "--vae", "/x"]) == 2
    assert "error: --vae: weights alone need none" in capsys.readouterr().err
    with pytest.raises(GeneratorError, match="from no folder"):
        OneStepGenerator(tiny_network(), IdentityCodec(), 2.5).to_diffusers(tmp_path / "d")
    assert not (tmp_path / "d").exists()
