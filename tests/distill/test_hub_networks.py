"""Runs whose teacher, guide and start are on the hub, and the commands that look at them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.config.networks import local_networks
from sid_scale.config.run import load_config
from sid_scale.distill.loop import train
from sid_scale.hub.names import name_of
from sid_scale.networks.folder import save_network
from tests.generators.tiny import save_generator
from tests.hub_server import Hub, files_of, use_hub
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, settings, tiny_folder, write_teacher

ON_HUB = {
    "teacher": "user/teacher@v1",
    "generator_init": "user/start",
    "objective__guide": "user/guide",
    "objective__guidance": 1.5,
    "log__samples_every_images": 0,
}


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Path:
    """A folder with all that a run needs but its networks, which are on the hub."""
    prepare(tmp_path)
    teacher = hub.model("user/teacher", files_of(tmp_path / "teacher"))
    teacher.refs["v1"] = teacher.refs["main"]
    hub.model("user/guide", files_of(write_teacher(tmp_path / "guide", seed=1)))
    hub.model("user/start", files_of(save_generator(tmp_path / "start", tiny_folder(seed=2))))
    return tmp_path


@contextmanager
def asking(address: str, cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(address, cache, patch)
        yield


def _trains(rank: int, folder: Path, address: str, images: int) -> None:
    with asking(address, folder / "cache"):
        train(config(folder, total_images=images, **ON_HUB), joined())


@pytest.mark.distributed
def test_of_two_ranks_one_fetches_and_the_run_says_what(run: Path, hub: Hub):
    run_ranks(2, _trains, run, hub.address, 16)
    assert hub.fetched("model.safetensors") == 3  # each network once
    commits = {name: model.refs["main"] for name, model in hub.models.items()}

    made = json.loads((run / "run" / "generator" / "config.json").read_text())["provenance"]
    assert made["teacher"] == "teacher"
    assert made["teacher_on_hub"] == f"user/teacher@{commits['user/teacher']}"
    assert made["settings"]["objective"]["guide"] == f"user/guide@{commits['user/guide']}"
    written = load_config(run / "run" / "config.yaml")
    assert written.teacher == f"user/teacher@{commits['user/teacher']}"
    assert written.generator_init == f"user/start@{commits['user/start']}"

    # It goes on, although the branch has moved; what is fetched is what the run names.
    hub.asked.clear()
    hub.models["user/teacher"].commit(files_of(run / "guide"))
    run_ranks(2, _trains, run, hub.address, 32)
    assert hub.fetched("model.safetensors") == 0
    records = (run / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in records] == [8, 16, 24, 32]


def latent_teacher(folder: Path, vae: str) -> Path:
    codec = {"kind": "vae", "vae": vae, "scale": [1] * 3, "bias": [0] * 3}
    save_network(folder, dataclasses.replace(tiny_folder(), codec=codec))
    return folder


def words(run: Path, **overrides: object) -> list[str]:
    return ["--config", str(run / "run.yaml"), *settings(run, **{**ON_HUB, **overrides})]


def test_check_fetches_what_a_run_names(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--check", *words(run)]) == 0
    assert hub.fetched("model.safetensors") == 3
    hub.model("user/latents", files_of(latent_teacher(run / "latents", vae="user/vae")))
    hub.model("user/vae", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"vae"})
    seen = ["log.samples_every_images=8"]
    assert main(["train", "--check", *words(run, teacher="user/latents"), *seen]) == 0
    assert hub.fetched("diffusion_pytorch_model.safetensors") == 1
    assert main(["train", "--check", *words(run, teacher="user/none")]) == 2
    said = capsys.readouterr().err
    assert "error: teacher: user/none: there is no such folder here, and no such model" in said
    assert main(["train", "--check", *words(run, objective__guide="user/none")]) == 2
    assert "error: objective.guide: user/none: there is no such" in capsys.readouterr().err


def test_memory_counts_a_teacher_from_the_hub(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
):
    overrides = ["--gpus-per-node", "1", *words(run)]
    assert main(["memory", *overrides]) == 0
    assert "expected memory on each GPU" in capsys.readouterr().out
    assert hub.fetched("model.safetensors") == 2  # teacher and guide


def test_every_setting_of_a_network_takes_a_name(run: Path, hub: Hub):
    hub.model("timm/eyes", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.model("facebook/dinov2", {"config.json": b"{}", "model.safetensors": b"weights"})
    found = local_networks(
        config(
            run,
            warm_up=False,
            method="gdd",
            teacher=run / "teacher",
            **{
                "objective.feature_networks": "{eyes: timm/eyes, here: /weights/x.safetensors}",
                "evaluation.dinov2": "facebook/dinov2",
            },
        )
    )
    assert found.teacher == str(run / "teacher")
    eyes = Path(found.objective.feature_networks["eyes"])
    assert eyes.read_bytes() == b"weights"
    assert str(name_of(eyes)).startswith("timm/eyes@")
    assert found.objective.feature_networks["here"] == "/weights/x.safetensors"
    assert found.evaluation.dinov2 is not None
    assert (Path(found.evaluation.dinov2) / "config.json").is_file()
