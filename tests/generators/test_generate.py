"""`sid-scale generate`, as users start it: alone, on ranks, interrupted, again."""

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale.class_lists import ListError
from sid_scale.cli import main
from sid_scale.codecs import CodecError
from sid_scale.commands.generate import add_arguments
from sid_scale.generators.generate import make_images, plan, put_together
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.generators.image_folder import ImageFolderError, check_grid
from sid_scale.image_grid import read_png, write_png
from sid_scale.networks.folder import CheckpointError, load_network
from tests.generators.tiny import demo_generator, edit_description, tiny_generator
from tests.hub_server import Hub, environment, files_of
from tests.launches import PATIENCE, wait_for
from tests.ranks import free_port, joined, run_ranks

ALONE = [sys.executable, "-m", "sid_scale", "generate"]


@pytest.fixture
def start():
    """Starts a command; what is left of it is killed."""
    started = []

    def start(*command: object, **environment: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def generate(*arguments: object) -> None:
    """The command, in this process: one of one rank."""
    here = joined()
    planned = plan(parse([str(argument) for argument in arguments]))
    make_images(planned, here)
    put_together(planned)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")} - {"grid.png"}


@pytest.mark.distributed
def test_one_process_and_two_make_the_same_images(tmp_path: Path, start):
    folder = demo_generator(tmp_path / "g")
    (folder / "classes.txt").write_text("null\none\ntwo\ndrei\n4\n5\n6\n7\n8\n9\n")
    what = ["--generator", folder, "--classes", "Drei,7-8", "--seeds", "0-3,11", "--out"]
    alone = start(*ALONE, *what, tmp_path / "one", "--grid", "--npz")
    output = finish(alone)
    assert alone.returncode == 0, output
    assert "15 images, 0 of them there already" in output
    launcher = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2]
    launcher += ["--master_port", free_port(), "-m", "sid_scale", "generate"]
    together = start(*launcher, *what, tmp_path / "two")
    output = finish(together)
    assert together.returncode == 0, output

    made = names(tmp_path / "one")
    assert len(made) == 15
    assert "class0003-seed000011.png" in made
    assert names(tmp_path / "two") == made
    for name in made:
        one, two = (read_png(tmp_path / n / name) for n in ("one", "two"))
        assert torch.equal(one, two), name

    archive = np.load(tmp_path / "one" / "images.npz")
    assert archive["classes"].tolist() == [3] * 5 + [7] * 5 + [8] * 5
    assert archive["seeds"].tolist() == [0, 1, 2, 3, 11] * 3
    direct = OneStepGenerator.from_pretrained(folder).generate(archive["classes"], archive["seeds"])
    assert archive.files == ["arr_0", "classes", "seeds"]
    assert archive["arr_0"].dtype == np.uint8  # (N, H, W, 3), as ADM's evaluator wants
    assert np.array_equal(archive["arr_0"], direct.permute(0, 2, 3, 1).numpy())
    grid = read_png(tmp_path / "one" / "grid.png")
    size = direct.shape[-1]
    assert grid.shape == (3, 3 * size, 5 * size)
    assert torch.equal(grid[:, size : 2 * size, 4 * size :], direct[9])


@pytest.mark.distributed
def test_of_two_ranks_one_fetches_what_is_on_the_hub(tmp_path: Path, start, hub: Hub):
    folder = demo_generator(tmp_path / "g")
    files = files_of(folder)
    files["config.json"] = files["config.json"].replace(b'"vae": "vae"', b'"vae": "user/vae"')
    hub.model("user/digits", {path: data for path, data in files.items() if path[:4] != "vae/"})
    hub.model("user/vae", files_of(folder / "vae"))
    launcher = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2]
    launcher += ["--master_port", free_port(), "-m", "sid_scale", "generate"]
    what = ["--classes", "3,7", "--seeds", "0-1", "--out", tmp_path / "out", "--generator"]
    process = start(*launcher, *what, "user/digits", **environment(hub.address, tmp_path / "home"))
    output = finish(process)
    assert process.returncode == 0, output
    for file in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        assert hub.fetched(file) == 1
    out = tmp_path / "out"
    made = torch.stack([read_png(out / name) for name in sorted(names(out))])
    known = OneStepGenerator.from_pretrained(folder).generate([3, 3, 7, 7], [0, 1, 0, 1])
    assert torch.equal(made, known)


@pytest.mark.distributed
@pytest.mark.faults
def test_interrupted_it_keeps_what_is_made_and_makes_the_rest(tmp_path: Path, start):
    folder, out = tiny_generator(tmp_path / "g"), tmp_path / "out"
    what = ["--generator", folder, "--classes", "0-3", "--out", out, "--seeds"]
    process = start(*ALONE, *what, "0-49999")
    wait_for(lambda: len(names(out)) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process)
    assert process.returncode == 1
    assert output.count("error: interrupted; the same command makes what is missing") == 1
    assert "Traceback" not in output
    assert not list(out.glob(".*.partial"))
    run_ranks(1, _goes_on, what)


def _goes_on(rank: int, what: list[object]) -> None:
    out = Path(str(what[5]))
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    (out / "class0000-seed000002.png").unlink()
    generate(*what, f"0-{len(before) + 4}")
    after = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    del before["class0000-seed000002.png"]
    assert len(after) >= 4 * (len(before) + 5)
    assert {name: after[name] for name in before} == before


@pytest.mark.distributed
def test_a_folder_takes_images_of_one_recipe(tmp_path: Path):
    run_ranks(1, _one_recipe, tmp_path)


def _one_recipe(rank: int, tmp_path: Path) -> None:
    folder, out = tiny_generator(tmp_path / "g"), tmp_path / "out"
    what = ["--generator", folder, "--out", out, "--classes", "0,1", "--seeds", "0"]
    generate(*what)
    recipe = json.loads((out / "generate.json").read_text())
    assert (recipe["steps"], recipe["dtype"]) == (1, "float32")
    generate(*what, "--steps", 1)  # what it was by default
    generate("--generator", folder, "--out", out, "--classes", "3", "--seeds", "7")  # more of it
    assert len(names(out)) == 3
    for other, message in (
        (("--steps", 2), "steps 1 there, 2 now"),
        (("--dtype", "bfloat16"), 'dtype "float32" there, "bfloat16" now'),
    ):
        with pytest.raises(ImageFolderError, match=message):
            generate(*what, *other)
    network = load_network(folder)
    edit_description(folder, provenance={**network.provenance, "init_sigma": 1.0})
    with pytest.raises(ImageFolderError, match=r"init_sigma 2\.5 there, 1\.0 now"):
        generate(*what)
    edit_description(
        folder, provenance={**network.provenance, "images_seen": 5}
    )  # tells nothing new
    generate(*what)
    network.state["unet.out_gain"] += 1
    edit_description(folder, state=network.state)
    with pytest.raises(ImageFolderError, match="weights_sha256 "):
        generate(*what)
    (out / "generate.json").unlink()
    with pytest.raises(ImageFolderError, match=r"holds images, but no generate\.json"):
        generate(*what)
    for damaged in (b"{", b"\xff\xfe"):
        (out / "generate.json").write_bytes(damaged)
        with pytest.raises(ImageFolderError, match="damaged"):
            generate(*what)
    with pytest.raises(ImageFolderError, match="cannot be used"):
        generate(*what[:3], folder / "config.json", *what[4:])
    assert len(names(out)) == 3


@pytest.mark.faults
@pytest.mark.distributed
def test_an_image_of_another_size_is_named_and_nothing_is_put_together(tmp_path: Path):
    run_ranks(1, _another_size, tmp_path)


def _another_size(rank: int, tmp_path: Path) -> None:
    what = ["--generator", tiny_generator(tmp_path / "g"), "--out", tmp_path / "out"]
    what += ["--classes", "0", "--seeds", "0-2"]
    generate(*what)
    [_, second, _] = sorted(names(tmp_path / "out"))
    write_png(tmp_path / "out" / second, torch.zeros(3, 4, 4, dtype=torch.uint8))
    for kind in ("--npz", "--grid"):
        with pytest.raises(ImageFolderError, match=rf"{second} is an image of \[4, 4\] pixels"):
            generate(*what, kind)
    assert not list((tmp_path / "out").glob("*.npz"))


@pytest.mark.faults
@pytest.mark.distributed
def test_a_generator_that_cannot_make_images_claims_no_folder(tmp_path: Path):
    run_ranks(1, _no_codec, tmp_path)


def _no_codec(rank: int, tmp_path: Path) -> None:
    folder = demo_generator(tmp_path / "g")
    edit_description(folder, codec={"kind": "identity"})
    what = ["--generator", folder, "--classes", "0", "--seeds", "0", "--out", tmp_path / "out"]
    with pytest.raises(CodecError, match="names no VAE"):
        generate(*what)
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_what_is_wrong_with_the_command_is_told_once(tmp_path: Path, start):
    folder = tiny_generator(tmp_path / "g")
    what = ["--generator", folder, "--out", tmp_path / "out", "--seeds", "0", "--classes"]
    process = start(*ALONE, *what, "0,fish")
    output = finish(process)
    assert process.returncode == 2
    assert output.count("error: classes: 'fish'") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_what_cannot_be_planned_is_refused_before_anything_is_made(tmp_path: Path):
    folder = tiny_generator(tmp_path / "g")
    what = ["--generator", str(folder), "--out", "o", "--classes", "0-3"]
    assert main(["generate", *what, "--seeds", "0", "--steps", "0"]) == 2
    with pytest.raises(ImageFolderError, match="4 classes x 200 seeds is too large: 400 images"):
        plan(parse([*what, "--seeds", "0-199", "--grid"]))
    check_grid(range(4), range(100))
    with pytest.raises(ListError, match="4 classes x 5000000 seeds are more than 10,000,000"):
        plan(parse([*what, "--seeds", "1-5000000"]))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors there"):
        plan(parse([*what, "--seeds", "0"]))
