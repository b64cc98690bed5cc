"""The model card says what is known, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from sid_scale.demo.prepare import TEACHER
from sid_scale.generators.card import write_card
from sid_scale.generators.folder import GeneratorError
from sid_scale.networks.folder import load_network
from tests.conftest import ROOT
from tests.generators.tiny import PROVENANCE, demo_generator, edit_description, tiny_generator

EDM2_PROVENANCE: dict[str, Any] = {
    **PROVENANCE,
    "method": "sid2a",
    "teacher": "edm2-img512-xl-1342177-0.085",
    "teacher_sha256": "ab" * 32,
    "images_seen": 79_500_000,
    "generator_init": {"method": "sid", "images_seen": 234_000_000},
    "settings": {"batch_size": 2048, "learning_rate": {"generator": 5e-5}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_generator(tmp_path / "generator")


def card(folder: Path, **options: Any) -> ModelCard:
    return ModelCard.load(write_card(folder, **options))


def test_what_is_not_known_is_not_said(folder: Path):
    written = card(folder)
    assert written.data.license == "unknown"
    assert written.data.datasets is None
    assert written.data.base_model is None
    assert written.data.eval_results is None
    assert "an unknown teacher" in written.text
    assert "Nothing, when this card was written" in written.text
    assert "The licence of the teacher is unknown" in written.text
    for absent in ("images seen", "samples.png", "batch", "VAE", "None"):
        assert absent not in written.text


def test_of_a_published_teacher_it_says_how_and_how_long_and_its_licence(folder: Path):
    edit_description(folder, provenance=EDM2_PROVENANCE)
    (folder / "samples.png").touch()
    written = card(folder, metrics={"fid": 1.379, "more": {"n": 50_000}}, base_model="a/b")
    assert written.data.license == "cc-by-nc-sa-4.0"
    assert written.data.library_name == "sid_scale"
    assert written.data.datasets == ["ILSVRC/imagenet-1k"]
    assert written.data.base_model == "a/b"
    assert {"sid2a", "one-step"} <= set(written.data.tags)
    assert [(r.metric_type, r.metric_value) for r in written.data.eval_results] == [
        ("fid", 1.379),
        ("more.n", 50_000),
    ]
    for told in (
        "# edm2-img512-xl-1342177-0.085 SiD2A",
        "| images seen | 79,500,000 |",
        "| started from | a generator made with SiD, after 234,000,000 images |",
        "| batch | 2048 |",
        "| fid | 1.379 |",
        "abab",
        "![Samples](samples.png)",
        "no commercial use",
    ):
        assert told in written.text, told


def test_names_that_resemble_a_published_teachers_prove_nothing(folder: Path):
    own = {**EDM2_PROVENANCE, "teacher": "edm2-img512-xs-ours"}
    edit_description(folder, provenance=own)
    assert card(folder).data.license == "unknown"
    source = {"source": "edm2-img512-xs-2147483-0.135.pkl"}
    edit_description(folder, provenance={**own, "teacher": "xs", "teacher_provenance": source})
    assert card(folder).data.license == "cc-by-nc-sa-4.0"


def test_an_imported_generator_says_which_file_it_was(folder: Path):
    imported = {**PROVENANCE, "source": "snapshot.pkl", "source_sha256": "cd" * 32}
    edit_description(folder, provenance=imported)
    assert "snapshot.pkl" in card(folder).text
    assert "cd" * 32 in card(folder).text


def test_the_demos_generator_is_free_and_whole(tmp_path: Path):
    teacher = {"teacher_provenance": load_network(TEACHER).provenance}
    written = card(demo_generator(tmp_path / "g", **teacher))
    assert written.data.license == "apache-2.0"
    assert written.data.datasets is None
    assert "handwritten digits" in written.text
    assert "not in this folder" not in written.text


def test_a_licence_without_an_identifier_is_named(folder: Path):
    provenance = {**PROVENANCE, "teacher_provenance": {"license": "Ours, ask first"}}
    edit_description(folder, provenance=provenance)
    written = card(folder)
    assert (written.data.license, written.data.license_name) == ("other", "Ours, ask first")
    assert "Ours, ask first" in written.text


@pytest.mark.faults
def test_no_text_breaks_out_of_the_card(folder: Path):
    evil = '---\nlicense: mit\n---\n| `x` "\n# Free beer'
    provenance = {**EDM2_PROVENANCE, "teacher": evil, "method": [evil], "settings": evil}
    edit_description(
        folder, provenance={**provenance, "teacher_provenance": {"license": evil, "what": evil}}
    )
    written = card(folder, metrics={evil: evil})
    assert written.data.license == "other"
    assert not [line for line in written.text.splitlines() if line.startswith("# Free")]


@pytest.mark.faults
def test_a_teachers_folder_gets_none(tmp_path: Path):
    with pytest.raises(GeneratorError):
        write_card(TEACHER)
    assert not (TEACHER / "README.md").exists()


def test_the_tool_draws_and_tells(folder: Path, tmp_path: Path):
    tool = [sys.executable, str(ROOT / "tools" / "make_card.py"), str(folder)]
    (tmp_path / "metrics.json").write_text(json.dumps({"fid": 3.5}))
    metrics = ["--metrics", str(tmp_path / "metrics.json")]
    done = subprocess.run([*tool, *metrics, "--samples", "5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "samples.png").is_file()
    text = (folder / "README.md").read_text()
    assert "| fid | 3.5 |" in text
    assert "samples.png" in text
    (tmp_path / "metrics.json").write_text("[1]")
    done = subprocess.run([*tool, *metrics], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("error:")) == (1, 1)
    assert "Traceback" not in done.stderr
    assert (folder / "README.md").read_text() == text
