"""`sid-scale push`: what is checked, what is sent, and that it comes back the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from tests.generators.tiny import demo_generator, edit_description, tiny_generator
from tests.hub_server import TOKEN, Hub, files_of

NAME = "user/digits"
CARD = "---\nlicense: mit\n---\n\n# Digits\n\n## What was measured\n\n| fid | 1.5 |\n"
SENT = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A generator's folder that may be pushed, among files that may not."""
    folder = tiny_generator(tmp_path / "g")
    (folder / "README.md").write_text(CARD)
    for name in ("optimizer.pkl", "pipeline.py", ".secret", "vae.bin"):
        (folder / name).write_bytes(b"\x80")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right to write to the hub."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def push(folder: Path, *arguments: str) -> int:
    return main(["push", str(folder), NAME, *arguments])


def sent(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    model = hub.models[NAME]
    return model.commits[model.refs[revision]]


@pytest.mark.usefixtures("token")
def test_what_is_pushed_comes_back_the_same(hub: Hub, tmp_path: Path):
    licence = {"teacher_provenance": {"license": "cc-by-nc-sa-4.0"}}
    folder = demo_generator(tmp_path / "g", **licence)
    (tmp_path / "metrics.json").write_text('{"fid": 1.5}')
    words = ["--repo", NAME, "--metrics", str(tmp_path / "metrics.json"), "--samples", "4"]
    assert main(["card", str(folder), *words]) == 0
    assert push(folder) == 0
    files = sent(hub)
    del files[".gitattributes"]  # which the hub makes
    assert files == files_of(folder)
    local, back = (OneStepGenerator.from_pretrained(place) for place in (folder, NAME))
    assert torch.equal(local.generate([3, 7], [0, 1]), back.generate([3, 7], [0, 1]))


@pytest.mark.usefixtures("token")
def test_nothing_is_pushed_that_can_carry_code_or_is_hidden(hub: Hub, ready: Path):
    assert push(ready) == 0
    assert set(sent(hub)) == {*SENT, ".gitattributes"}


@pytest.mark.usefixtures("token")
def test_what_was_added_for_diffusers_is_pushed_unless_it_was_changed(hub: Hub, ready: Path):
    OneStepGenerator.from_pretrained(ready).to_diffusers(ready)
    module = ready / "generator" / "sid_scale.generators.diffusers_pipeline.py"
    added = {"model_index.json", "pipeline.py", str(module.relative_to(ready))}
    assert push(ready) == 0
    assert set(sent(hub)) == {*SENT, *added, ".gitattributes"}
    module.write_text(module.read_text() + "import os\n")
    assert push(ready, "--revision", "changed") == 0
    assert sent(hub, "changed") == sent(hub)


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(
    hub: Hub, ready: Path, capsys: pytest.CaptureFixture[str]
):
    assert push(ready, "--dry-run") == 0
    said = capsys.readouterr().out
    for name in SENT:
        assert f"{(ready / name).stat().st_size:,}  {name}\n" in said
    for name in ("optimizer.pkl", "pipeline.py", ".secret", ".git/"):
        assert f"left out  {name}\n" in said
    assert said.endswith(f"{NAME}: checked, and nothing sent\n")
    assert not hub.asked


@pytest.mark.usefixtures("token")
def test_a_model_may_be_private_and_a_branch_another(
    hub: Hub, ready: Path, capsys: pytest.CaptureFixture[str]
):
    assert push(ready, "--private") == 0
    assert hub.models[NAME].private
    assert push(ready, "--private", "--revision", "v2") == 0
    assert hub.models[NAME].refs.keys() == {"main", "v2"}
    hub.models[NAME].private = False
    hub.asked.clear()
    assert push(ready, "--private") == 2
    assert "error: user/digits: the model is there, and public" in capsys.readouterr().err
    assert not any("commit" in line for line in hub.asked)


def no_card(folder: Path) -> None:
    (folder / "README.md").unlink()


def no_licence(folder: Path) -> None:
    (folder / "README.md").write_text(CARD.replace("mit", "unknown"))


def no_metadata(folder: Path) -> None:
    (folder / "README.md").write_text("---\n[\n---\n")


def no_metrics(folder: Path) -> None:
    (folder / "README.md").write_text(CARD.replace("|", "-"))


def no_name(folder: Path) -> None:
    loaded_as("user/repo", folder)


def name_of_another(folder: Path) -> None:
    loaded_as("user/another@v1", folder)


def loaded_as(name: str, folder: Path) -> None:
    text = f'{CARD}\n    OneStepGenerator.from_pretrained("{name}")\n'
    (folder / "README.md").write_text(text)


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-8])


def teacher(folder: Path) -> None:
    edit_description(folder, provenance={"kind": "teacher"})


def vae_elsewhere(folder: Path) -> None:
    codec = {"kind": "vae", "vae": "/data/vae", "scale": [1] * 3, "bias": [0] * 3}
    edit_description(folder, codec=codec)
    (folder / "README.md").write_text(CARD)


def cut_vae(folder: Path) -> None:
    vae_elsewhere(folder)
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 9)


@pytest.mark.faults
@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_card, "no README.md there: `sid-scale card"),
        (no_licence, "no licence"),
        (no_metadata, "no model card"),
        (no_metrics, "no metrics: measure with `sid-scale evaluate run`"),
        (no_name, f"load user/repo, not {NAME}: `sid-scale card {{folder}} --repo {NAME}`"),
        (name_of_another, f"load user/another, not {NAME}: `sid-scale card {{folder}} --repo"),
        (cut_weights, "model.safetensors: damaged"),
        (teacher, "a teacher, not a generator"),
        (vae_elsewhere, "vae: no config.json there"),
        (cut_vae, "diffusion_pytorch_model.safetensors is damaged"),
    ],
)
def test_a_folder_that_is_not_ready_is_refused_before_anything_is_sent(
    spoil, message: str, hub: Hub, ready: Path, capsys: pytest.CaptureFixture[str]
):
    spoil(ready)
    assert push(ready) != 0
    assert message.format(folder=ready) in capsys.readouterr().err
    assert not hub.asked


@pytest.mark.faults
@pytest.mark.usefixtures("token")
def test_figures_of_other_weights_are_refused_until_the_card_is_written_anew(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    licence = {"teacher_provenance": {"license": "mit"}}
    folder = demo_generator(tmp_path / "g", **licence)
    (tmp_path / "metrics.json").write_text('{"fid": 1.5}')
    words = ["card", str(folder), "--repo", NAME, "--samples", "4"]
    assert main([*words, "--metrics", str(tmp_path / "metrics.json")]) == 0
    replace_weights(folder)
    assert push(folder, "--unmeasured") == 2
    message = "README.md: its figures are of other weights than model.safetensors beside it"
    assert message in (said := capsys.readouterr().err)
    assert f"`sid-scale card {folder} --repo {NAME}` writes it anew" in said
    assert not hub.asked
    assert main(words) == 0
    assert push(folder, "--unmeasured") == 0


def replace_weights(folder: Path) -> None:
    """The weights of another training, of the same names and shapes."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.usefixtures("token")
def test_a_generator_that_was_never_measured_is_pushed_if_that_is_said(hub: Hub, ready: Path):
    no_metrics(ready)
    assert push(ready, "--unmeasured") == 0
    assert "README.md" in sent(hub)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("token", "message", "status"),
    [
        (None, "no access token, which writing needs: log in with `hf auth login`", 2),
        ("hf_nobody", "does not know the token", 2),
        ("hf_reader", "gives no right to write there", 2),
    ],
)
def test_without_rights_nothing_is_sent(
    token: str | None,
    message: str,
    status: int,
    hub: Hub,
    ready: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push(ready) == status
    assert f"error: {NAME}: " in (said := capsys.readouterr().err)
    assert message in said
    assert not hub.models


@pytest.mark.faults
@pytest.mark.usefixtures("token")
def test_a_hub_that_is_down_and_names_that_are_none_are_told(
    hub: Hub, ready: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["push", str(ready), "digits"]) == 2
    assert "digits: no name of a model on the hub" in capsys.readouterr().err
    assert main(["push", str(ready), f"{NAME}@v1", "--revision", "v2"]) == 2
    assert "names a revision already" in capsys.readouterr().err
    for branch, message in {
        "": "'' is no revision",
        "a b": "'a b' is no revision",
        "../x": "'../x' is no revision",
        "ab" * 20: "a commit is never written again: name a branch",
    }.items():
        assert main(["push", str(ready), NAME, "--revision", branch]) == 2
        assert message in capsys.readouterr().err
    assert not hub.asked
    hub.broken = True
    assert push(ready) == 1
    assert "cannot be sent to http://127.0.0.1" in capsys.readouterr().err
