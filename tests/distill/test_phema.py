"""Averages of any width out of snapshots: `sid-scale phema RUN --width W OUT`."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sid_scale.cli import main
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.hashing import sha256_file
from sid_scale.networks.folder import load_network, save_network
from sid_scale.zero.power_ema import reconstruction
from sid_scale.zero.snapshots import BUFFERS_FILE, EMA_SNAPSHOTS
from tests.conftest import ROOT, flip_last_bit
from tests.distill.snapshots import (
    GENERATOR,
    TWO,
    average_of,
    numbered,
    numbered_parameter,
    random_parameters,
    write_averages,
    write_run,
)
from tests.tiny import tiny_folder

IMAGES = 1e9  # of a unit of time in the vectors


def phema(*words: object) -> int:
    return main(["phema", *map(str, words)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.reference
def test_published_coefficients(reference_dir: Path, tmp_path: Path):
    """Every number is the file's; a moment may have some of the widths alone."""
    v = np.load(reference_dir / "power_function_ema.npz")
    run = tmp_path / "run"
    moments: dict[int, dict] = {}
    for place, (time, width) in enumerate(zip(v["in_ofs"], v["in_std"], strict=True)):
        of_moment = moments.setdefault(round(time * IMAGES), {})
        of_moment[float(width)] = numbered(place, len(v["in_ofs"]))
    for images_seen, averages in moments.items():
        write_averages(run, images_seen, averages)
    wanted = zip(np.atleast_1d(v["out_ofs"]), np.atleast_1d(v["out_std"]), strict=True)
    for number, (time, width) in enumerate(wanted):
        out = tmp_path / f"out{number}"
        assert phema(run, "--width", float(width), "--images", round(time * IMAGES), out) == 0
        blended = load_network(out).state[numbered_parameter()].flatten()
        expected = v["coefficients"].reshape(len(v["in_ofs"]), -1)[:, number]
        np.testing.assert_allclose(blended[: len(expected)], expected, rtol=1e-5, atol=1e-8)
        assert not blended[len(expected) :].any()


@pytest.mark.parametrize("width", [0.05, 0.1])
@pytest.mark.parametrize("images", [8, 16])
def test_a_stored_average_comes_back(run: Path, tmp_path: Path, width: float, images: int):
    given = [] if images == 16 else ["--images", images]  # the last one, if nothing is said
    assert phema(run, "--width", width, *given, tmp_path / "out") == 0
    found = load_network(tmp_path / "out").state
    for name, value in average_of(images, width).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_another_width_blends_all_stored_averages_as_they_are_trained(run: Path, tmp_path: Path):
    """No row is normalised, and buffers are taken as they are."""
    assert phema(run, "--width", 0.07, tmp_path / "out") == 0
    stored = [(moment, width) for moment, widths in TWO.items() for width in widths]
    times, widths = np.array(stored).T
    fit = reconstruction(times, widths, 16, 0.07)
    found, averages = load_network(tmp_path / "out").state, [average_of(*a) for a in stored]
    for name in averages[0]:
        terms = (c * a[name].double() for c, a in zip(fit.coefficients, averages, strict=True))
        torch.testing.assert_close(found[name], sum(terms).float(), rtol=1e-6, atol=1e-7)
    for name, buffer in random_parameters(0)[1].items():
        assert torch.equal(found[name], buffer)


def test_the_folder_is_a_generators_and_says_what_it_is_made_of(run: Path, tmp_path: Path, capsys):
    out, teacher = tmp_path / "out", tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "classes.txt").write_text("a\nb\nc\nd\n")
    assert phema(run, "--width", 0.07, "--images", 8, out) == 0
    assert f"{out}: width 0.07 at 8 images, of 4 averages in 2 snapshots" in capsys.readouterr().out
    provenance = load_network(out).provenance
    assert provenance["images_seen"] == 8
    made_of = provenance["post_hoc_ema"]
    assert made_of["relative_width"] == 0.07
    assert made_of["snapshots"] == {"0.050": [8, 16], "0.100": [8, 16]}
    images = OneStepGenerator.from_pretrained(out).generate([0, 1], seeds=[0, 1])
    assert images.shape == (2, 3, 8, 8)
    assert (out / "classes.txt").is_file()
    card = (out / "README.md").read_text()
    assert "| relative width of the average, reconstructed | 0.07 |" in card
    assert "half-life" not in card


def test_frozen_weights_come_from_the_folder_that_the_run_started_from(tmp_path: Path, capsys):
    run, start, moved = tmp_path / "run", tmp_path / "start", tmp_path / "moved"
    save_network(start, tiny_folder(3))
    name = numbered_parameter()
    trained = {n: value for n, value in random_parameters(1)[0].items() if n != name}
    digest = sha256_file(start / "model.safetensors")
    frozen = {"sha256": digest, "weights": [name]}
    for images, place in {8: "where/it/was/first", 16: str(start)}.items():
        described = {**frozen, "start": place}
        write_averages(run, images, {0.05: trained, 0.1: trained}, frozen=described)
    assert phema(run, "--width", 0.07, tmp_path / "out") == 0
    assert torch.equal(load_network(tmp_path / "out").state[name], load_network(start).state[name])
    start.rename(moved)
    assert phema(run, "--width", 0.07, tmp_path / "out2") == 1
    assert "name a copy of" in capsys.readouterr().err
    assert phema(run, "--width", 0.07, "--start", moved, tmp_path / "out2") == 0


@pytest.mark.faults
def test_frozen_weights_that_the_folder_lacks_are_told(tmp_path: Path, capsys):
    run, start = tmp_path / "run", tmp_path / "start"
    save_network(start, tiny_folder(3, dataclasses.replace(GENERATOR, model_channels=8)))
    name = numbered_parameter()
    trained = {n: value for n, value in random_parameters(1)[0].items() if n != name}
    digest = sha256_file(start / "model.safetensors")
    described = {"start": str(start), "sha256": digest, "weights": [name]}
    write_averages(run, 8, {0.05: trained, 0.1: trained}, frozen=described)
    assert phema(run, "--width", 0.07, tmp_path / "out") == 1
    assert f"of {name}, which is to come from there" in capsys.readouterr().err


# Reconstructs a small network first, which imports all there is to import.
MEASURE = """
import resource, sys
from pathlib import Path
from sid_scale.distill.phema import open_snapshots, plan_blend, reconstruct
peaks = []
for run in sys.argv[1:]:
    reconstruct(plan_blend(open_snapshots(Path(run)), 0.07), Path(run) / "out")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_network(run: Path, tmp_path: Path):
    wide = dataclasses.replace(GENERATOR, model_channels=128, channel_mult=(1, 2), num_blocks=4)
    parameters, _ = random_parameters(0, wide)
    sizes = [value.nbytes for value in parameters.values()]
    for images in (8, 16):
        write_averages(tmp_path / "wide", images, {0.05: parameters, 0.1: parameters}, wide)
    command = [sys.executable, "-c", MEASURE, str(run), str(tmp_path / "wide")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 6 * max(sizes) + 10e6 < sum(sizes) / 2


def test_a_poor_fit_is_told(run: Path, tmp_path: Path, capsys):
    assert phema(run, "--width", 0.15, tmp_path / "out") == 0
    assert "warning: the fit of width 0.15 at 16 images is poor" in capsys.readouterr().out


# --- faults -------------------------------------------------------------------------------


def damage(file: str, harm):
    return lambda run: harm(run / EMA_SNAPSHOTS / "000000000008" / file)


def other_architecture(run: Path) -> None:
    architecture = dataclasses.replace(GENERATOR, model_channels=32)
    averages = {w: random_parameters(0, architecture)[0] for w in (0.05, 0.1)}
    write_averages(run, 24, averages, architecture)


def other_parameters(run: Path) -> None:
    less = dict(list(random_parameters(0)[0].items())[1:])
    write_averages(run, 24, {0.05: less, 0.1: less})


def one_average(run: Path) -> None:
    shutil.rmtree(run / EMA_SNAPSHOTS)
    write_averages(run, 8, {0.05: average_of(8, 0.05)})


def one_width(run: Path) -> None:
    shutil.rmtree(run / EMA_SNAPSHOTS)
    for images in (8, 16):
        write_averages(run, images, {0.02: average_of(images, 0.05)})


def same_width_twice(described: dict[str, Any]) -> None:
    described["averages"] = dict.fromkeys(described["averages"], 0.05)


def renamed(described: dict[str, Any], name: str) -> None:
    for of_file in (described["averages"], described["files"]):
        of_file[name] = of_file.pop("0.050.safetensors")


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Harm that changes the description of the last snapshot."""

    def harm(run: Path) -> None:
        path = run / EMA_SNAPSHOTS / "000000000016" / "snapshot.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return harm


def entry(key: str, value: object) -> Callable[[Path], None]:
    return described(lambda content: content["files"]["0.050.safetensors"].update({key: value}))


def width(value: object) -> Callable[[Path], None]:
    return described(lambda content: content["averages"].update({"0.050.safetensors": value}))


def frozen(**changes: object) -> Callable[[Path], None]:
    """Harm to what all snapshots say of frozen weights."""

    def harm(run: Path) -> None:
        for path in (run / EMA_SNAPSHOTS).glob("*/snapshot.json"):
            content = json.loads(path.read_text())
            content["frozen"] = {"start": "gone", "sha256": "0", "weights": ["w"], **changes}
            path.write_text(json.dumps(content))

    return harm


def other_buffers(tensors: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    """Harm with checksums that agree."""

    def harm(run: Path) -> None:
        file = run / EMA_SNAPSHOTS / "000000000016" / BUFFERS_FILE
        save_file(tensors, file)
        told = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        described(lambda content: content["files"].update({BUFFERS_FILE: told}))(run)

    return harm


def of_no_images(run: Path) -> None:
    root = run / EMA_SNAPSHOTS
    path = (root / "000000000008").rename(root / "000000000000") / "snapshot.json"
    path.write_text(path.read_text().replace('"images_seen": 8', '"images_seen": 0', 1))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("harm", "words", "status", "message"),
    [
        (lambda run: shutil.rmtree(run), [], 1, r"no such folder; name the run_dir"),
        (lambda run: shutil.rmtree(run / EMA_SNAPSHOTS), [], 1, r"holds no snapshots: a run"),
        (one_average, [], 2, r"another width takes two at least"),
        (one_width, ["--width", "0.15"], 2, r"no blend of the 2 stored averages comes near"),
        (
            damage("0.050.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-40])),
            [],
            1,
            r"snapshot .*008 is damaged: 0\.050\.safetensors has .* bytes instead",
        ),
        (damage("0.100.safetensors", flip_last_bit), [], 1, r"another checksum"),
        (damage("0.100.safetensors", lambda p: p.unlink()), [], 1, r"is missing"),
        (damage("snapshot.json", lambda p: p.write_text("{")), [], 1, r"missing or damaged"),
        (described(same_width_twice), [], 1, r"missing or damaged \(odd entries\)"),
        (described(lambda d: renamed(d, "..")), [], 1, r"missing or damaged \(odd entries\)"),
        (described(lambda d: renamed(d, "a\0b")), [], 1, r"missing or damaged \(odd entries\)"),
        (entry("bytes", "many"), [], 1, r"missing or damaged \(odd entries\)"),
        (entry("sha256", None), [], 1, r"missing or damaged \(odd entries\)"),
        (of_no_images, [], 1, r"missing or damaged \(odd entries\)"),
        (width(5), [], 1, r"snapshot.json is .* damaged \(a relative width is in \(0, 0\.289\)"),
        (width(10**400), [], 1, r"snapshot.json is missing or damaged \(int too large"),
        (frozen(start=5), [], 1, r"the description of its frozen weights is damaged"),
        (frozen(weights=5), [], 1, r"the description of its frozen weights is damaged"),
        (frozen(start="no\0name"), [], 1, r"the description of its frozen weights is damaged"),
        (other_buffers({}), [], 1, r"buffers\.safetensors holds other tensors than its arch"),
        (
            other_buffers({name: torch.ones(2, 2) for name in random_parameters(0)[1]}),
            [],
            1,
            r"buffers\.safetensors holds other tensors than its architecture has",
        ),
        (other_architecture, [], 1, r"are of different networks \(architecture\)"),
        (other_parameters, [], 1, r"holds other tensors than its architecture"),
        (lambda run: (run.parent / "out").write_text("thesis"), [], 2, r"OUT .* exists"),
        (lambda run: write_run(run.parent / "out"), [], 2, r"OUT .* exists"),
        (lambda run: None, ["--width", "0.3"], 2, r"a relative width is in \(0, 0\.289\)"),
        (lambda run: None, ["--images", "17"], 2, r"the snapshots end at 16"),
    ],
)
def test_what_cannot_be_reconstructed_is_one_line(
    run: Path, tmp_path: Path, capsys, harm, words: list[str], status: int, message: str
):
    harm(run)
    before = sorted(p.name for p in tmp_path.iterdir())
    width = [] if "--width" in words else ["--width", 0.07]
    assert phema(run, *width, *words, tmp_path / "out") == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.faults
@pytest.mark.parametrize("words", [["--width", 0.3], ["--width", 0.07, "--images", 17]])
def test_what_was_asked_for_is_refused_before_files_are_read(
    run: Path, tmp_path: Path, capsys, words: list[object]
):
    damage("0.050.safetensors", flip_last_bit)(run)
    assert phema(run, *words, tmp_path / "out") == 2
    assert "checksum" not in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.parametrize("width", ["0", "-0.1", "nan", "wide"])
def test_a_width_that_is_none_is_refused(run: Path, tmp_path: Path, width: str):
    with pytest.raises(SystemExit) as ended:
        phema(run, f"--width={width}", tmp_path / "out")
    assert ended.value.code == 2
