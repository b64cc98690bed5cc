"""Classes: numbered by folders, and never moved by what is missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sid_scale.data.prepare.class_labels import ClassCount
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.sources import open_source
from tests.sources import png, write_folder, write_tar, write_zip

PIXEL = png(np.zeros((2, 2, 3), np.uint8))


def images(folder: Path, *names: str) -> Path:
    return write_folder(folder, dict.fromkeys(names, PIXEL))


def labels_of(folder: Path, **options: object) -> dict[str, int]:
    source = open_source(folder, **options)  # type: ignore[arg-type]
    with source.part(np.arange(len(source))).open() as raws:
        return {raw.entry.name: raw.entry.label for raw in raws}


def test_folders_named_by_numbers_are_these_classes(tmp_path: Path) -> None:
    images(tmp_path, *(f"{number}/1.png" for number in range(12)))
    assert labels_of(tmp_path) == {f"{number}/1.png": number for number in range(12)}
    assert open_source(tmp_path).classes == [str(number) for number in range(12)]


def test_numbers_with_zeros_before_them_are_numbers(tmp_path: Path) -> None:
    images(tmp_path, "000/1.png", "02/1.png", "1/1.png")
    assert labels_of(tmp_path) == {"000/1.png": 0, "02/1.png": 2, "1/1.png": 1}


def test_an_empty_class_keeps_its_number_if_that_is_wanted(tmp_path: Path) -> None:
    images(tmp_path / "named", "cat/1.png", "dog/1.png")
    (tmp_path / "named" / "bird").mkdir()
    assert labels_of(tmp_path / "named", empty_classes=True) == {"cat/1.png": 1, "dog/1.png": 2}
    images(tmp_path / "numbers", "0/1.png", "3/1.png")
    source = open_source(tmp_path / "numbers", ClassCount(6, "--num-classes"), empty_classes=True)
    assert source.classes == ["0", "1", "2", "3", "4", "5"]
    assert labels_of(tmp_path / "numbers", empty_classes=True) == {"0/1.png": 0, "3/1.png": 3}


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["class10", "class9"], "class 0 is class10, not class9"),
        (["Zebra", "ape"], "class 0 is Zebra, not ape"),
        (["0", "1", "cat"], "some class folders are named by numbers and some are not"),
    ],
)
def test_an_order_that_may_be_meant_otherwise_is_noted(
    tmp_path: Path, names: list[str], note: str
) -> None:
    images(tmp_path, *(f"{name}/1.png" for name in names))
    source = open_source(tmp_path)
    assert source.classes == sorted(names)
    assert note in source.notes[0]


def test_imagenets_folders_need_no_note(tmp_path: Path) -> None:
    images(tmp_path, "n01440764/1.png", "n10443537/1.png", "n01443537/1.png")
    assert open_source(tmp_path).notes == []


def test_labels_beside_the_samples_are_webdatasets(tmp_path: Path) -> None:
    files = {"b.jpg": PIXEL, "b.cls": b"7\n", "a.jpg": PIXEL, "a.cls": b"0"}
    write_folder(tmp_path, files | {"a.json": b"{}"})
    assert labels_of(tmp_path) == {"a.jpg": 0, "b.jpg": 7}
    assert open_source(tmp_path).num_classes == 8


def test_classes_that_no_sample_is_of_are_noted(tmp_path: Path) -> None:
    """Labels that count from 1, perhaps."""
    files = {f"{n}.jpg": PIXEL for n in range(1, 4)}
    write_folder(tmp_path, files | {f"{n}.cls": b"%d" % n for n in range(1, 4)})
    source = open_source(tmp_path, ClassCount(5, "the teacher"))
    assert source.notes == [f"{tmp_path}: classes without a sample: 0, 4 (2)"]


def test_class_folders_with_folders_in_them_are_taken_if_their_number_is_said(
    tmp_path: Path,
) -> None:
    images(tmp_path, "cat/day/1.png", "cat/night/1.png", "dog/1.png")
    with pytest.raises(SourceError, match="say --num-classes 2"):
        open_source(tmp_path)
    said = ClassCount(2, "--num-classes")
    assert open_source(tmp_path, said).classes == ["cat", "dog"]


# What is refused


@pytest.mark.faults
def test_class_folders_without_samples_are_named(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "ape").mkdir()
    write_folder(tmp_path, {"bat/1.heic": b"", "bat/notes.txt": b""})
    (tmp_path / "cow").symlink_to(tmp_path / "nowhere")
    (tmp_path / "St.Bernard").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"without a sample: St\.Bernard, ape, bat, cow \(4\)"):
        open_source(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_have_class_folders_without_samples_too(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = write(tmp_path / "set", {"ape/1.png": PIXEL, "bat/1.heic": b"", "cow/1.png": PIXEL})
    with pytest.raises(SourceError, match=r"without a sample: bat \(1\)"):
        open_source(path)
    assert open_source(path, empty_classes=True).classes == ["ape", "bat", "cow"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["1", "2", "3"], r"missing: 0 \(1\)"),
        (["0", "1", "4"], r"missing: 2, 3 \(2\)"),
        (["0", "11"], r"missing: 1, 2, 3, 4, 5 \.\.\. \(10\)"),
        (["0000000", "0000002"], r"missing: 1 \(1\)"),
        (["20240101", "20240102"], "20240102 would be a class of this number"),
        (["0", "1", "01"], "class folders 01 and 1 are one number"),
    ],
)
def test_numbers_that_are_not_all_classes_are_refused(
    tmp_path: Path, names: list[str], complaint: str
) -> None:
    images(tmp_path, *(f"{name}/1.png" for name in names))
    with pytest.raises(SourceError, match=complaint):
        open_source(tmp_path)


@pytest.mark.faults
def test_another_number_of_classes_than_the_networks_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    for number in (2, 4):
        with pytest.raises(SourceError, match=f"3 classes, but the teacher has {number}"):
            open_source(tmp_path, ClassCount(number, "the teacher"))
    write_folder(tmp_path / "beside", {"a.jpg": PIXEL, "a.cls": b"5"})
    with pytest.raises(SourceError, match=r"class 5 is not in 0\.\.4, and the teacher has 5"):
        open_source(tmp_path / "beside", ClassCount(5, "the teacher"))


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"cat", b"-1", b"1.5", b"", b"1 2"])
def test_a_class_file_without_a_class_is_refused(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, {"a.jpg": PIXEL, "a.cls": content})
    with pytest.raises(SourceError, match=r"a\.cls holds .*, not a class"):
        open_source(tmp_path)
    write_folder(tmp_path, {"a.cls": b"1", "b.jpg": PIXEL})
    with pytest.raises(SourceError, match=r"these do not: b\.cls"):
        open_source(tmp_path)
    write_folder(tmp_path, {"b.cls": b"1", "b.mask.png": PIXEL})
    with pytest.raises(SourceError, match=r"b\.cls is the class of several images"):
        open_source(tmp_path)
    write_folder(tmp_path / "large", {"a.jpg": PIXEL, "a.cls": b"900000000"})
    with pytest.raises(SourceError, match=r"class 900000000 is not in 0\.\.999999"):
        open_source(tmp_path / "large")
