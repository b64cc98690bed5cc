"""The model card says what is known, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from sid_scale.demo.prepare import TEACHER
from sid_scale.errors import UsageError
from sid_scale.generators.card import write_card
from sid_scale.generators.folder import GeneratorError
from sid_scale.hashing import sha256_file
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from tests.conftest import ROOT
from tests.generators.tiny import PROVENANCE, demo_generator, edit_description, tiny_generator
from tests.hub_server import Hub, files_of
from tests.networks.edm import published as edm
from tests.programs import python
from tests.report.folders import write_evaluation

IMAGENET = "ILSVRC/imagenet-1k"
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


def arxiv(written: ModelCard) -> set[str]:
    """Numbers of the papers that a card links."""
    return set(re.findall(r"arxiv.org/abs/([\d.]+)", written.text))


def card(folder: Path, metrics: dict[str, Any] | None = None, **options: Any) -> ModelCard:
    """The card as a hub reads it; `metrics` stand in a file."""
    files = []
    if metrics is not None:
        files = [folder.with_name("metrics.json")]
        files[0].write_text(json.dumps(metrics))
    return ModelCard.load(write_card(folder, files, **options))


def test_what_is_not_known_is_not_said(folder: Path):
    written = card(folder)
    assert written.data.license == "unknown"
    assert written.data.datasets is None
    assert written.data.base_model is None
    assert written.data.eval_results is None
    assert written.data.get("widget") is None
    assert "an unknown teacher" in written.text
    assert "Nothing, when this card was written" in written.text
    assert "The licence of the teacher is unknown" in written.text
    for absent in ("images seen", "samples.png", "batch", "VAE", "None", "diffusers"):
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


@pytest.mark.parametrize(
    ("teacher", "what", "datasets", "papers", "base_model"),
    [
        (
            *("edm-cifar10-32x32-cond-vp", "EDM's DDPM++ on CIFAR-10 with classes"),
            *(["uoft-cs/cifar10"], ("2206.00364",), None),
        ),
        ("edm-ffhq-64x64-uncond-vp", "EDM's DDPM++ on FFHQ 64x64", None, ("2206.00364",), None),
        ("edm-afhqv2-64x64-uncond-ve", "EDM's NCSN++ on AFHQv2 64x64", None, ("2206.00364",), None),
        (
            *("edm-imagenet-64x64-cond-adm", "EDM's ADM on ImageNet 64x64 with classes"),
            *([IMAGENET], ("2206.00364",), None),
        ),
        (
            *("edm2-img64-xl-0671088-0.040", "EDM2-XL on ImageNet 64x64", [IMAGENET]),
            *(("2312.02696",), None),
        ),
        (
            *("edm2-img512-l-ddo", "EDM2-L on ImageNet 512x512, fine-tuned by DDO", [IMAGENET]),
            *(("2312.02696", "2503.01103"), "nvidia/DirectDiscriminativeOptimization"),
        ),
        (
            *("edm-cifar10-uncond-vp-ddo", "CIFAR-10 without classes, fine-tuned by DDO"),
            *(["uoft-cs/cifar10"], ("2206.00364", "2503.01103")),
            "nvidia/DirectDiscriminativeOptimization",
        ),
    ],
)
def test_published_teachers_are_known_with_data_licence_and_papers(
    folder: Path, teacher, what, datasets, papers, base_model
):
    facts = {"teacher": "mine", "teacher_provenance": {"source": f"{teacher}.pkl"}}
    edit_description(folder, provenance={**PROVENANCE, **facts})
    written = card(folder, metrics={"fid": 1.5})
    assert written.data.license == "cc-by-nc-sa-4.0"
    assert written.data.datasets == datasets
    assert written.data.base_model == base_model
    assert written.data.model_name == f"{teacher} SiDA"
    assert len(written.data.eval_results) == 1
    assert f"distilled from the diffusion model `{teacher}`" in written.text
    assert what in written.text
    assert f"`{teacher}.pkl`: NVIDIA publishes the" in written.text
    assert arxiv(written) == {*papers, "2404.04057", "2410.14919"}


@pytest.mark.parametrize("architecture", edm.ALL.values(), ids=edm.ALL.keys())
def test_a_generator_of_pixels_is_described_by_its_own_family(tmp_path: Path, architecture):
    state = edm.random_state(architecture)
    provenance = {**PROVENANCE, "method": "sid"}
    save_network(tmp_path / "g", NetworkFolder(architecture, state, provenance=provenance))
    written = card(tmp_path / "g")
    assert "edm" in written.data.tags
    assert "# EDM SiD" in written.text
    assert "| network's images | 3 x 8 x 8, " in written.text
    assert "VAE" not in written.text
    assert written.data.license == "unknown"
    assert arxiv(written) == {"2206.00364", "2404.04057"}


def test_names_that_resemble_a_published_teachers_prove_nothing(folder: Path):
    own = {**EDM2_PROVENANCE, "teacher": "edm2-img512-xs-ours"}
    edit_description(folder, provenance=own)
    assert card(folder).data.license == "unknown"
    source = {"source": "edm2-img512-xs-2147483-0.135.pkl"}
    edit_description(folder, provenance={**own, "teacher": "xs", "teacher_provenance": source})
    assert card(folder).data.license == "cc-by-nc-sa-4.0"


def test_the_samples_are_what_the_hubs_widget_shows(folder: Path):
    (folder / "samples.png").touch()
    assert card(folder).data.widget == [{"text": "Samples", "output": {"url": "samples.png"}}]


def test_two_lines_make_images(folder: Path):
    code = re.findall(r"```python\n(.*?)```", card(folder).text, re.DOTALL)[0]
    first, second = code.splitlines()
    names: dict[str, Any] = {}
    exec(f"{first}\n{second.replace('user/repo', str(folder))}", names)
    assert names["images"].shape == (3, 3, 8, 8)


def test_two_lines_make_images_from_the_hub(folder: Path, hub: Hub):
    text = card(folder, repo="ada/digits").text
    assert "user/repo" not in text
    assert "stands for" not in text
    hub.model("ada/digits", files_of(folder))
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert torch.equal(
        names["images"],
        OneStepGenerator.from_pretrained(folder).generate([0, 0, 1], seeds=[0, 1, 0]),
    )


def test_a_folder_for_diffusers_says_how(folder: Path):
    OneStepGenerator.from_pretrained(folder).to_diffusers(folder)
    assert (
        'pipe = DiffusionPipeline.from_pretrained("ada/digits", custom_pipeline="pipeline", '
        "trust_remote_code=True)\nimages = pipe([0, 0, 1], seeds=[0, 1, 0]).images"
    ) in card(folder, repo="ada/digits").text


def test_figures_come_back_from_the_card_with_their_protocol(folder: Path):
    """As huggingface_hub writes and reads a model-index."""
    edit_description(folder, provenance=EDM2_PROVENANCE)
    figures = write_evaluation(
        folder / "evaluation" / "final" / "metrics.json",
        fd_pixels=0.625,
        network__sha256=sha256_file(folder / "model.safetensors"),
        repeats={"fd_pixels": {"values": [0.5, 0.75], "mean": 0.625, "min": 0.5, "std": 0.125}},
        settings={"labels": "uniform", "dtype": "bfloat16"},
    )
    written = card(folder)
    again = ModelCard(str(written))
    assert again.data.to_dict() == written.data.to_dict()
    [result] = again.data.eval_results
    assert (result.dataset_type, result.dataset_name) == (IMAGENET, "ImageNet")
    assert (result.metric_type, result.metric_value) == ("fd_pixels", 0.625)
    assert result.metric_args == {
        "images": 50_000,
        "first_seed": 0,
        "repeats": 2,
        "min": 0.5,
        "std": 0.125,
        "labels": "uniform",
        "nfe": 1,
        "dtype": "bfloat16",
        "reference": "reference.npz",
        "reference_sha256": "cd" * 32,
        "file": "evaluation/final/metrics.json",
    }
    assert (
        "| fd_pixels | 0.625 | 50,000 images, mean of 2 times (min 0.5, std 0.125), "
        "seeds 0 to 99,999, classes: uniform, NFE 1, bfloat16, "
        "against reference.npz (SHA-256 cdcdcdcdcd), in evaluation/final/metrics.json |"
    ) in written.text
    assert str(folder.parent) not in str(written)
    figures.unlink()
    assert card(folder).data.eval_results is None


def test_data_that_nobody_knows_have_no_name_unless_one_is_given(folder: Path):
    [result] = card(folder, metrics={"fid": 2.0}).data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("unknown", "unknown")
    written = card(folder, metrics={"fid": 2.0}, dataset="ada/cats")
    assert written.data.datasets == ["ada/cats"]
    assert written.data.eval_results[0].dataset_type == "ada/cats"


@pytest.mark.faults
@pytest.mark.parametrize("option", ["repo", "base_model", "dataset"])
def test_what_is_no_id_on_the_hub_is_told(folder: Path, option: str):
    with pytest.raises(UsageError, match=r"'a b\\nc' is no id on the hub, such as user/repo"):
        write_card(folder, **{option: "a b\nc"})
    assert not (folder / "README.md").exists()


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
@pytest.mark.parametrize(
    "damage",
    [
        {"images_seen": 10**400},
        {"settings": {"ema": {"half_life": 10**400}}},
        {"post_hoc_ema": {"relative_width": 0.1}},
        {"post_hoc_ema": {"snapshots": 3}},
        {"post_hoc_ema": {"snapshots": {"0.1": 3, "0.2": [{}, 8]}}},
        {"teacher_on_hub": "../secret@main"},
        {"teacher_on_hub": ["user/teacher"]},
    ],
)
def test_what_is_no_fact_is_left_out(folder: Path, damage: dict[str, Any]):
    edit_description(folder, provenance={**PROVENANCE, **damage})
    written = card(folder)
    assert "| first noise level | 2.5 |" in written.text
    assert "000000" not in written.text
    assert written.data.base_model is None


def test_a_teacher_of_the_hub_is_the_base_model(folder: Path):
    on_hub = {"teacher": "xs", "teacher_on_hub": f"ada/xs@{'ab' * 20}"}
    edit_description(folder, provenance={**PROVENANCE, **on_hub})
    assert card(folder).data.base_model == "ada/xs"
    assert card(folder, base_model="ada/other").data.base_model == "ada/other"


def test_a_teacher_whose_folder_is_named_by_its_role_is_called_what_it_is(folder: Path):
    facts = {"what": "class-conditional teacher on handwritten digits"}
    named = {**PROVENANCE, "method": "gdd", "teacher": "teacher"}
    edit_description(folder, provenance={**named, "teacher_provenance": facts})
    text = card(folder).text
    assert "# EDM2 GDD\n" in text
    assert "distilled from a class-conditional teacher on handwritten digits." in text
    edit_description(folder, provenance={**named, "teacher": "digits"})
    text = card(folder).text
    assert "# digits GDD\n" in text
    assert "distilled from the diffusion model `digits`." in text


@pytest.mark.faults
def test_a_teachers_folder_gets_none(tmp_path: Path):
    with pytest.raises(GeneratorError):
        write_card(TEACHER)
    assert not (TEACHER / "README.md").exists()


@pytest.mark.faults
@pytest.mark.parametrize("run", ["nowhere", "empty"])
def test_what_is_no_run_is_refused_instead_of_a_card_without_its_figures(
    run: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    assert main(["card", str(folder), "--run", str(tmp_path / run)]) == 2
    assert f"error: --run {tmp_path / run}: no run's folder" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


@pytest.mark.faults
def test_a_name_on_the_hub_is_no_folder_to_write_into(capsys: pytest.CaptureFixture[str]):
    assert main(["card", "user/repo"]) == 2
    assert "error: user/repo: no such folder here" in capsys.readouterr().err


def test_the_tool_draws_and_tells(folder: Path, tmp_path: Path):
    tool = [ROOT / "tools" / "make_card.py", folder]
    (tmp_path / "metrics.json").write_text(json.dumps({"fid": 3.5}))
    metrics = ["--metrics", tmp_path / "metrics.json"]
    done = python(*tool, *metrics, "--samples", 5)
    assert done.returncode == 0, done.stderr
    assert (folder / "samples.png").is_file()
    text = (folder / "README.md").read_text()
    assert "| fid | 3.5 |" in text
    assert "samples.png" in text
    (tmp_path / "metrics.json").write_text("[1]")
    done = python(*tool, *metrics)
    assert (done.returncode, done.stderr.count("error:")) == (1, 1)
    assert "Traceback" not in done.stderr
    assert (folder / "README.md").read_text() == text
