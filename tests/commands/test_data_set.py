"""From EDM's zips to shards of pixels, by either command."""

from pathlib import Path

import numpy as np
import pytest

from sid_scale.cli import main
from sid_scale.data.shards import read_index
from sid_scale.demo.prepare import TEACHER
from tests.sources import contents, edm_zip, png, samples, write_folder, write_zip
from tests.tiny import ARCHITECTURE, random_images, write_teacher

CLASSES = ARCHITECTURE.label_dim
IMAGES = random_images(24)
LABELS = np.arange(24) % CLASSES


def made(command: str, source: Path, out: Path, *options: str) -> int:
    words = [command, "--source", str(source), "--out", str(out), "--shard-size", "40kB", *options]
    return main([*words, "--workers", "1"] if command == "shards" else words)


@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "none"])
def test_edms_zip_becomes_shards_of_its_pixels(tmp_path: Path, labels: np.ndarray | None) -> None:
    source = write_zip(tmp_path / "set.zip", edm_zip(IMAGES, labels))
    assert made("shards", source, tmp_path / "out") == 0
    index = read_index(tmp_path / "out")
    assert (index.sample_shape, index.dtype) == ((3, 8, 8), "uint8")
    assert index.num_classes == (0 if labels is None else CLASSES)
    for key, (pixels, label) in samples(tmp_path / "out").items():
        number = int(key.removeprefix("00000/img"))
        np.testing.assert_array_equal(pixels, IMAGES[number])
        assert label == (0 if labels is None else labels[number])


def test_a_teacher_of_pixels_is_encoded_for_in_parts(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", edm_zip(IMAGES, LABELS))
    teacher = ("--codec", str(write_teacher(tmp_path / "teacher")))
    for number in range(2):
        assert made("encode", source, tmp_path / "parts", "--part", f"{number}/2", *teacher) == 0
    assert made("shards", source, tmp_path / "whole", *teacher) == 0
    parts, whole = contents(tmp_path / "parts"), contents(tmp_path / "whole")
    assert len(whole) > 3
    for files in (parts, whole):
        files.pop("recipe.json")  # the one command says that nothing is mirrored
    assert parts == whole


def test_mirror_images_are_stored_as_well_if_asked_for(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", edm_zip(IMAGES, LABELS))
    teacher = str(write_teacher(tmp_path / "teacher"))
    assert made("encode", source, tmp_path / "out", "--codec", teacher, "--flip") == 0
    found = samples(tmp_path / "out")
    assert len(found) == 48
    np.testing.assert_array_equal(found["00000/img00000003_flipped"][0], IMAGES[3, :, :, ::-1])


# What is refused


@pytest.mark.faults
@pytest.mark.parametrize("command", ["shards", "encode"])
def test_images_of_another_size_than_the_teachers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    source = write_zip(tmp_path / "set.zip", edm_zip(IMAGES, LABELS))
    teacher = str(write_teacher(tmp_path / "teacher"))
    options = ("--codec", teacher, "--resolution", "16")
    assert made(command, source, tmp_path / "out", *options) == 2
    assert "of shape (3, 16, 16), but the network in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_pixels_are_for_no_teacher_of_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_zip(tmp_path / "set.zip", edm_zip(random_images(20), np.arange(20) % 10))
    assert made("shards", source, tmp_path / "out", "--codec", str(TEACHER)) == 2
    assert "takes (1, 8, 8), stored as (2, 8, 8)" in capsys.readouterr().err


@pytest.mark.faults
def test_pixels_have_a_dtype_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "set", {"a/0.png": png(np.zeros((8, 8, 3), np.uint8))})
    teacher = ("--codec", str(write_teacher(tmp_path / "teacher")), "--unlabelled")
    for command in ("shards", "encode"):
        assert made(command, source, tmp_path / command, *teacher, "--dtype", "float16") != 0
        assert "uint8" in capsys.readouterr().err


@pytest.mark.faults
def test_damaged_images_of_a_zip_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = edm_zip(IMAGES, LABELS)
    name = "00000/img00000007.png"
    for content in (files[name][:60], b"", png(np.zeros((9, 8, 3), np.uint8))):
        source = write_zip(tmp_path / "set.zip", files | {name: content})
        assert made("shards", source, tmp_path / "out") != 0
        told = capsys.readouterr().err
        assert "1 samples are refused" in told or "1 sample" in told
        assert f"set.zip: {name}: " in told
