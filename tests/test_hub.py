"""Networks by their names on the hub, fetched from one that runs on this machine."""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from torch.multiprocessing import ProcessExitedException

from sid_scale import OneStepGenerator
from sid_scale.cli import main
from sid_scale.codecs import CodecError, open_codec
from sid_scale.hub.folders import fill_options, local_folder, on_every_node
from sid_scale.hub.names import FetchError, HubError, is_name, name_of
from sid_scale.ranks import Ranks
from tests.generators.tiny import demo_generator, save_generator, tiny_generator
from tests.hub_server import Hub, files_of, use_hub
from tests.ranks import free_port, run_joined
from tests.tiny import tiny_folder

NAME = "user/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_generator(tmp_path_factory.mktemp("folder") / "g")


@pytest.fixture
def tiny(hub: Hub, folder: Path) -> Hub:
    """A hub with a generator, and with files beside it that can carry code."""
    beside = {"README.md": b"# tiny", "old.pkl": b"\x80", "pytorch_model.bin": b"\x80"}
    hub.model(NAME, {**files_of(folder), **beside, "pipeline.py": b"raise SystemExit"})
    return hub


def images(*place: object, **options: object) -> torch.Tensor:
    return OneStepGenerator.from_pretrained(*place, **options).generate([1, 3], [0, 5])


def test_a_generator_from_the_hub_is_the_one_that_is_there(tiny: Hub, folder: Path):
    assert torch.equal(images(NAME), images(folder))


def test_nothing_is_fetched_that_can_carry_code(tiny: Hub):
    fetched = {path.name for path in local_folder(NAME).iterdir()}
    assert fetched == {"config.json", "model.safetensors", "README.md"}
    assert tiny.fetched("old.pkl") == tiny.fetched("pipeline.py") == 0
    assert tiny.fetched("pytorch_model.bin") == 0


def test_what_is_in_the_cache_is_not_fetched_again(tiny: Hub):
    first = local_folder(NAME)
    assert local_folder(NAME) == first
    assert tiny.fetched("model.safetensors") == 1
    commit = tiny.models[NAME].refs["main"]
    assert name_of(first) == f"{NAME}@{commit}"
    tiny.asked.clear()
    assert local_folder(f"{NAME}@{commit}") == first
    assert not tiny.asked


def test_a_commit_of_which_the_cache_has_a_part_is_completed(hub: Hub, tmp_path: Path):
    whole = files_of(demo_generator(tmp_path / "g"))
    commit = hub.model("user/digits", whole).refs["main"]
    hf_hub_download("user/digits", "config.json", revision=commit)
    for missing in ("model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        folder = local_folder(f"user/digits@{commit}")
        assert files_of(folder) == whole
        (folder / missing).unlink()
    assert files_of(local_folder(f"user/digits@{commit}")) == whole


def test_a_revision_is_a_branch_a_tag_or_a_commit(tiny: Hub, folder: Path, tmp_path: Path):
    other = save_generator(tmp_path / "other", tiny_folder(seed=1))
    old = tiny.models[NAME].refs["main"]
    tiny.models[NAME].commit(files_of(other), "v2")
    new = images(other)
    assert torch.equal(images(NAME, revision="v2"), new)
    assert torch.equal(images(f"{NAME}@v2"), new)
    assert torch.equal(images(NAME), images(folder))
    tiny.models[NAME].commit(files_of(other))
    assert torch.equal(images(NAME), new)
    assert torch.equal(images(NAME, revision=old), images(folder))


def test_the_cache_may_be_elsewhere(tiny: Hub, tmp_path: Path):
    images(NAME, cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "models--user--tiny").is_dir()
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_folder_of_that_name_wins(tiny: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    here = save_generator(tmp_path / NAME, tiny_folder(seed=1))
    assert torch.equal(images(NAME), images(here))
    assert not tiny.asked


def test_a_vae_that_config_json_names_comes_from_the_hub(hub: Hub, tmp_path: Path):
    whole = demo_generator(tmp_path / "g")
    files = files_of(whole)
    parts = {path: data for path, data in files.items() if not path.startswith("vae/")}
    parts["config.json"] = parts["config.json"].replace(b'"vae": "vae"', b'"vae": "user/vae"')
    hub.model("user/digits", parts)
    hub.model("user/vae", files_of(whole / "vae"))
    made = OneStepGenerator.from_pretrained("user/digits", cache_dir=tmp_path / "c")
    latents = made.sample_latents([3], [1])
    assert hub.fetched("diffusion_pytorch_model.safetensors") == 0  # nobody has asked for images
    known = OneStepGenerator.from_pretrained(whole)
    assert torch.equal(made.generate([3], [1]), known.generate([3], [1]))
    assert (tmp_path / "c" / "models--user--vae").is_dir()
    assert made.codec.describe()["vae"] == "user/vae"
    named = OneStepGenerator.from_pretrained(whole, vae="user/vae")
    assert torch.equal(named.codec.decode(latents), known.codec.decode(latents))


@pytest.mark.faults
def test_what_the_environment_holds_is_not_sent(
    tiny: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "swordfish")
    codec = {"kind": "vae", "vae": "user/$SECRET", "scale": [1] * 3, "bias": [0] * 3}
    with pytest.raises(CodecError, match=r"no config\.json there"):
        open_codec(codec).check()
    assert not tiny.asked


@pytest.mark.faults
def test_offline_the_cache_has_to_do(tiny: Hub, monkeypatch: pytest.MonkeyPatch):
    known = images(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tiny.asked.clear()
    assert torch.equal(images(NAME), known)
    with pytest.raises(HubError, match=r"no such folder here.*cache.*HF_HUB_OFFLINE.*hf download"):
        local_folder("user/other")
    with pytest.raises(HubError, match=r"hf download user/tiny --revision v2"):
        local_folder(f"{NAME}@v2")
    assert not tiny.asked


@pytest.mark.faults
@pytest.mark.parametrize("down", ["closed", "broken"])
def test_when_the_hub_does_not_answer_the_cache_has_to_do(
    down: str, tiny: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    known = local_folder(NAME)
    tiny.broken = True
    if down == "closed":
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert local_folder(NAME) == known
    assert f"note: {NAME}: {constants.ENDPOINT} does not give it" in capsys.readouterr().err
    with pytest.raises(FetchError, match=r"no such folder here.*cannot be fetched from") as told:
        local_folder("user/other")
    assert told.value.exit_status == 1  # another start may do better


@pytest.mark.faults
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("user/none", r"no such folder here, and no such model at .*spelling.*HF_TOKEN"),
        ("user/secret", r"no such model at .*or it is private.*hf auth login"),
        ("user/gated", r"is gated: ask for access at .*/user/gated"),
        ("user/tiny@v9", r"/user/tiny has no revision v9"),
        ("user/text", r"holds no config\.json: it is no network's folder"),
        ("./user/tiny", r"nothing is there, and it is no name of a model on the hub"),
        ("/no/such/folder", r"nothing is there.*user/repo@revision"),
        ("tiny", r"nothing is there"),
        ("a/b/c", r"nothing is there"),
        ("user/--", r"nothing is there"),
        ("user/tiny@../../x", r"nothing is there"),
        ("user/tiny@a~1", r"nothing is there"),
        ("", r"nothing is there"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_clear_error(place: str, message: str, tiny: Hub):
    files = tiny.models[NAME].commits[tiny.models[NAME].refs["main"]]
    tiny.model("user/secret", files, private=True)
    tiny.model("user/gated", files, gated=True)
    tiny.model("user/text", {"README.md": b"# a text"})
    with pytest.raises(HubError, match=message) as told:
        local_folder(place)
    assert told.value.exit_status == 2
    assert "\n" not in str(told.value)


@pytest.mark.faults
def test_a_wrong_token_and_two_revisions_are_told(
    tiny: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(HubError, match="names a revision already"):
        local_folder(f"{NAME}@main", revision="v2")
    with pytest.raises(HubError, match=r"user/tiny: '\.\./x' is no revision: a branch, a tag"):
        local_folder(NAME, revision="../x")
    with pytest.raises(HubError, match="is here, and has no revision v2"):
        local_folder(folder, revision="v2")
    tiny.models[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="refuses the access token"):
        local_folder(NAME)


@pytest.mark.faults
def test_a_file_that_breaks_off_is_not_used(tiny: Hub, folder: Path):
    tiny.truncated = {"model.safetensors"}
    with pytest.raises(FetchError, match=r"cannot be fetched from .*Consistency check failed"):
        local_folder(NAME)
    tiny.truncated = set()
    assert torch.equal(images(NAME), images(folder))


def test_names_are_told_from_paths():
    names = ["user/repo", "user/repo@v1.0", "a_b/c-d.e@refs/pr/1", "runs/x"]
    paths = ["repo", "/user/repo", "./user/repo", "user/repo/", "a/b/c", "user/re po", "~/repo", ""]
    assert all(map(is_name, names))
    assert not any(map(is_name, paths))


def test_commands_take_names(tiny: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", NAME, str(tmp_path / "o.safetensors")]) == 0
    assert main(["export", "user/none", str(tmp_path / "p.safetensors")]) == 2
    assert capsys.readouterr().err.count("error: user/none: there is no such folder here") == 1
    sheets = ["--out", str(tmp_path / "sheets"), "--seeds", "0-1", "--frames", "2"]
    assert main(["grid", NAME, *sheets]) == 0
    whole = demo_generator(tmp_path / "g")
    tiny.model("user/vae", files_of(whole / "vae"))
    shutil.rmtree(whole / "vae")
    assert main(["card", str(whole), "--vae", "user/vae", "--samples", "4"]) == 0
    assert (whole / "vae" / "config.json").is_file()
    assert main(["card", str(whole), "--vae", "user/no-vae"]) == 2
    assert "error: --vae: user/no-vae: there is no such folder" in capsys.readouterr().err


@contextmanager
def noted(file: Path) -> Iterator[None]:
    """Writes a rank's error to a file, too."""
    try:
        yield
    except HubError as error:
        file.write_text(str(error))
        raise


def _both_on_one_node(ranks: Ranks, address: str, cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(address, cache, patch)
        found = on_every_node({"teacher": NAME})
        assert (found["teacher"] / "model.safetensors").is_file()
        with noted(cache / "error"):
            on_every_node({"guide": "user/none"})


@pytest.mark.distributed
@pytest.mark.faults
def test_an_error_of_the_rank_that_fetches_ends_all(tiny: Hub, tmp_path: Path):
    with pytest.raises(ProcessExitedException):
        run_joined(2, _both_on_one_node, tiny.address, tmp_path / "c")
    said = (tmp_path / "c" / "error").read_text()
    assert said.startswith("guide: user/none: there is no such folder here")
    assert tiny.fetched("model.safetensors") == 1


def _a_folder_of_one(ranks: Ranks, address: str, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(address, place / "cache", patch)
        patch.setenv("LOCAL_RANK", "0")
        patch.chdir(place / str(ranks.rank))
        with noted(place / "error"):
            on_every_node({"teacher": NAME})


@pytest.mark.distributed
@pytest.mark.faults
def test_a_folder_that_one_node_alone_has_is_not_fetched_by_others(tiny: Hub, tmp_path: Path):
    for folder in (f"0/{NAME}", "1"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ProcessExitedException):
        run_joined(2, _a_folder_of_one, tiny.address, tmp_path)
    assert f"teacher: ./{NAME}: nothing is there" in (tmp_path / "error").read_text()
    assert not tiny.asked


def _each_a_node(ranks: Ranks, address: str, caches: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(address, caches / str(ranks.rank), patch)
        patch.setenv("LOCAL_RANK", "0")
        on_every_node({"teacher": NAME})


@pytest.mark.distributed
def test_every_node_fetches_the_commit_that_the_first_has_found(tiny: Hub, tmp_path: Path):
    run_joined(2, _each_a_node, tiny.address, tmp_path)
    assert tiny.fetched("model.safetensors") == 2
    commit = tiny.models[NAME].refs["main"]
    revisions = [line.rsplit("/", 1)[1] for line in tiny.asked if f"{NAME}/revision" in line]
    assert sorted(revisions) == sorted(["main", commit])
    for rank in ("0", "1"):
        assert (tmp_path / rank / "models--user--tiny" / "snapshots" / commit).is_dir()


def test_every_argument_of_a_network_takes_a_name(tiny: Hub, folder: Path):
    tiny.model("timm/eyes", {"config.json": b"{}", "model.safetensors": b"weights"})
    given = argparse.Namespace(
        generator=NAME,
        teacher=None,
        vae=str(folder),
        start=[NAME, str(folder)],
        encoder=[("eyes", Path("timm/eyes")), ("here", Path("/weights/x.safetensors"))],
    )
    fill_options(given)
    assert str(name_of(given.generator)).startswith(f"{NAME}@")
    assert given.teacher is None
    assert given.vae == folder
    assert given.start == [given.generator, folder]
    (_, eyes), here = given.encoder
    assert eyes.read_bytes() == b"weights"
    assert here == ("here", Path("/weights/x.safetensors"))
    with pytest.raises(HubError, match="--start user/none: user/none: there is no such folder"):
        fill_options(argparse.Namespace(start=["user/none"]))
