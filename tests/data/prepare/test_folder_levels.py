"""Which folder of a source is meant, and what is left out of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.raw_samples import Source
from sid_scale.data.prepare.sources import open_source
from tests.sources import png, write_folder, write_zip

PIXEL = png(np.zeros((2, 2, 3), np.uint8))


def folder_of(path: Path, *names: str) -> Source:
    """A source of images with these names; a name with a slash at its end is an empty folder."""
    for name in names:
        if name.endswith("/"):
            (path / name).mkdir(parents=True)
        else:
            write_folder(path, {name: PIXEL})
    return open_source(path)


def classes_of(source: Source) -> dict[str, list[str]]:
    """The names of the files of each class folder."""
    found: dict[str, list[str]] = {name: [] for name in source.classes}
    with source.part(np.arange(len(source))).open() as raws:
        for raw in raws:
            found[source.classes[raw.entry.label]].append(raw.entry.name)
    return found


def test_one_common_folder_at_the_top_is_stepped_into(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "mine/cat/1.png", "mine/dog/1.png", "README")
    assert source.classes == ["cat", "dog"]
    assert source.notes[0].endswith("class folders are those in mine/")


def test_a_single_class_folder_is_no_common_folder(tmp_path: Path) -> None:
    assert folder_of(tmp_path, "cat/1.png", "cat/2.png").classes == ["cat"]


@pytest.mark.parametrize("pack", [write_zip, write_folder])
def test_labels_in_the_common_folder_are_found(tmp_path: Path, pack: object) -> None:
    labels = [["00000/1.png", 1], ["00000/2.png", 0]]
    files = {"mine/00000/1.png": PIXEL, "mine/00000/2.png": PIXEL}
    files["mine/dataset.json"] = json.dumps({"labels": labels}).encode()
    source = open_source(pack(tmp_path / "set", files))  # type: ignore[operator]
    with source.part(np.arange(2)).open() as raws:
        assert [(raw.entry.name, raw.entry.label) for raw in raws] == [
            ("mine/00000/1.png", 1),
            ("mine/00000/2.png", 0),
        ]
    assert source.num_classes == 2


def test_of_kaggles_imagenet_the_training_images_are_taken(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path,
        *("Data/CLS-LOC/train/n01/a.JPEG", "Data/CLS-LOC/train/n02/b.JPEG"),
        *("Data/CLS-LOC/val/c.JPEG", "Data/CLS-LOC/test/d.JPEG"),
        *("Annotations/CLS-LOC/train/n01/a.xml", "ImageSets/CLS-LOC/train_cls.txt"),
    )
    assert classes_of(source) == {
        "n01": ["Data/CLS-LOC/train/n01/a.JPEG"],
        "n02": ["Data/CLS-LOC/train/n02/b.JPEG"],
    }
    assert "takes Data/CLS-LOC/train/; leaves out 2 samples beside it" in source.notes[0]
    assert "left out for their suffix: 2 files (1 .xml, 1 .txt)" in source.notes[1]


@pytest.mark.parametrize(
    ("splits", "training"),
    [
        (("Train", "Val"), "Train"),
        (("train", "val", "meta"), "train"),
        (("TRAIN", "TEST"), "TRAIN"),
        (("training", "validation"), "training"),
        (("train2017", "val2017"), "train2017"),
    ],
)
def test_splits_are_known_in_any_case(
    tmp_path: Path, splits: tuple[str, ...], training: str
) -> None:
    names = [f"{split}/{name}/1.png" for split in splits for name in ("a", "b/images")]
    source = folder_of(tmp_path, *names)
    assert classes_of(source) == {
        "a": [f"{training}/a/1.png"],
        "b": [f"{training}/b/images/1.png"],
    }
    assert f"takes {training}/; leaves out {2 * len(splits) - 2} samples" in source.notes[0]


def test_a_training_split_alone_is_stepped_into_however_deep(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "Data/CLS-LOC/train/a/1.png", "Data/CLS-LOC/train/b/1.png")
    assert source.classes == ["a", "b"]
    assert source.notes[0].endswith("class folders are those in Data/CLS-LOC/train/")


def test_classes_may_be_called_like_splits_if_they_are_none(tmp_path: Path) -> None:
    assert folder_of(tmp_path, "train/1.png", "car/1.png").classes == ["car", "train"]


def test_what_servers_and_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path,
        *("cat/1.png", "dog/1.png", "@eaDir/cat/1.png", "cat/@eaDir/1.png/SYNO.png"),
        *("__MACOSX/cat/._1.png", ".thumbnails/1.png", "cat/._1.png", "#recycle/dog/2.png"),
    )
    assert classes_of(source) == {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["a/b/dataset.json", "a/b/0/1.png", "c/1.png"], r"lies in a/b/ \(1\), not at the top"),
        (["a/b/dataset.json", "a/b/0/1.png", "a/b/1/1.png"], r"lies in a/b/ \(1\)"),
        (["x/dataset.json", "x/1.png", "y/dataset.json", "y/2.png"], r"lies in x/, y/ \(2\)"),
        (
            ["top/dogs/a/1.png", "top/dogs/b/1.png"],
            r"makes dogs \(1\) class .* a, b \(2\).*/dogs perhaps",
        ),
        (["x/y/z/a/1.png", "x/y/z/b/1.png"], r"makes y \(1\) class .* z/a, z/b \(2\)"),
        (["train/a/1.png", "train/b/1.png", "meta/1.png"], r"makes train \(1\) class folders"),
        (["val/a/1.png", "test/a/1.png"], "holds test, val, and none of them is for training"),
        (["train/a/1.png", "Train/a/1.png", "val/a/1.png"], "holds Train, train, val, and 2"),
        (["train/", "val/a/1.png"], "train/ is the training split, and holds no samples"),
        (["0/train/1.png", "0/test/1.png", "1/train/1.png"], r"0 holds splits: test, train \(2\)"),
        (["train/1.png", "val/1.png"], r"train/1\.png is in no class folder"),
    ],
)
def test_a_level_that_is_not_clear_is_refused(
    tmp_path: Path, names: list[str], complaint: str
) -> None:
    with pytest.raises(SourceError, match=complaint):
        folder_of(tmp_path, *names)


@pytest.mark.faults
def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat/1.png": PIXEL})
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="again leads to a folder that holds it"):
        open_source(tmp_path)
    (tmp_path / "cat" / "again").unlink()
    write_folder(tmp_path, {"dog/1.png": PIXEL})
    (tmp_path / "cat" / "dog").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "cat").symlink_to(tmp_path / "cat")
    with pytest.raises(SourceError, match="leads to a folder that holds it"):
        open_source(tmp_path)
