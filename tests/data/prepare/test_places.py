"""Archives and several places: the same samples, wherever they lie."""

import json
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.raw_samples import Source
from sid_scale.data.prepare.sources import open_source
from tests.sources import digits, latents, png, tar, with_labels, write_folder, write_tar, write_zip

PIXEL = png(np.zeros((2, 2, 3), np.uint8))


def read(source: Source) -> list[tuple[str, int, bytes]]:
    with source.part(np.arange(len(source))).open() as raws:
        return [(raw.key, raw.entry.label, raw.load().tobytes()) for raw in raws]


def class_tars(files: dict[str, bytes]) -> dict[str, bytes]:
    """ImageNet's archive: a tar for each class, flat."""
    inside: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        folder, file = name.split("/")
        inside.setdefault(folder, {})[file] = content
    return {f"{folder}.tar": tar(content) for folder, content in inside.items()}


def test_images_in_tars_and_zips_are_those_of_the_folder(tmp_path: Path) -> None:
    files = digits(each=3)
    wanted = read(open_source(write_folder(tmp_path / "set", files)))
    assert read(open_source(write_tar(tmp_path / "set.tar", files))) == wanted
    assert read(open_source(write_zip(tmp_path / "set.zip", files))) == wanted


def test_a_tar_of_class_tars_holds_class_folders(tmp_path: Path) -> None:
    files = digits(each=3)
    wanted = read(open_source(write_folder(tmp_path / "set", files)))
    nested = class_tars(files)
    assert read(open_source(write_tar(tmp_path / "train.tar", nested))) == wanted
    assert read(open_source(write_folder(tmp_path / "tars", nested))) == wanted
    several = [write_folder(tmp_path / "tars", nested) / name for name in nested]
    assert read(open_source(several)) == wanted


@pytest.mark.parametrize("labelled", ["each its own", "one for all", "each has all"])
def test_edm2s_archive_in_parts_is_that_of_the_whole(tmp_path: Path, labelled: str) -> None:
    files = latents()
    wanted = read(open_source(write_zip(tmp_path / "whole.zip", files)))
    labels = files.pop("dataset.json")
    every = [[name, label] for (name, _), label in zip(files.items(), np.arange(40) * 5 // 40)]
    every = [[name, int(label)] for name, label in every]
    (tmp_path / "parts").mkdir()
    for part in range(3):
        some = {name: files[name] for name in list(files)[part::3]}
        if labelled == "each its own":
            some = with_labels(some, every[part::3])
        elif labelled == "each has all" or part == 1:
            some["dataset.json"] = labels
        write_zip(tmp_path / "parts" / f"img512-sd-{part}.zip", some)
    assert read(open_source(sorted((tmp_path / "parts").iterdir()))) == wanted
    assert read(open_source(tmp_path / "parts")) == wanted


def test_webdatasets_tars_hold_samples_and_their_classes(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(
            tmp_path / f"train-{shard:04d}.tar",
            {
                f"{n}.{suffix}": content  # keys are a tar's own
                for n in range(3)
                for suffix, content in (("jpg", PIXEL), ("cls", b"%d" % (n + shard)))
            },
        )
    assert [(key, label) for key, label, _ in read(open_source(tmp_path))] == [
        (f"train-{shard:04d}/{n}", n + shard) for shard in range(2) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("training", "other"),
    [
        ("train.zip", "val.zip"),
        ("ILSVRC2012_img_train.zip", "ILSVRC2012_img_val.zip"),
        ("train/000.zip", "validation/000.zip"),
    ],
)
def test_of_archives_of_splits_those_for_training_are_taken(
    tmp_path: Path, training: str, other: str
) -> None:
    for name, image in ((training, "1.png"), (other, "2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_zip(tmp_path / name, {f"{label}/{image}": PIXEL for label in ("a", "b")})
    source = open_source(tmp_path)
    assert (source.classes, len(source)) == (["a", "b"], 2)
    assert f"takes {training} (1); leaves out {other} (1)" in source.notes[0]


def test_labels_may_lie_beside_the_archives(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_zip(tmp_path / f"{name}.zip", {f"{name}.png": PIXEL})
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a.png", 1], ["b.png", 0]]}))
    assert [(key, label) for key, label, _ in read(open_source(tmp_path))] == [("a", 1), ("b", 0)]


def test_an_archive_may_hold_a_folder_of_its_own_name_or_a_dot(tmp_path: Path) -> None:
    write_zip(tmp_path / "cat.zip", {"cat/1.png": PIXEL})
    write_tar(tmp_path / "dog.TAR", {"./2.png": PIXEL})
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert [(key, label) for key, label, _ in read(source)] == [("cat/1", 0), ("dog/2", 1)]
    assert source.notes == ["joined as one source: cat, dog (2); each is a class"]


def test_more_archives_than_a_process_may_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(80):
        write_tar(tmp_path / f"{number:02d}.tar", {"a.png": PIXEL, "a.cls": b"0"})
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        assert len(read(open_source(tmp_path))) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# What is refused


@pytest.mark.faults
def test_parts_that_hold_the_same_file_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_zip(tmp_path / f"{name}.zip", {"cat/1.png": PIXEL, "dog/1.png": PIXEL})
    with pytest.raises(SourceError, match=r"/a\.zip and .*/b\.zip both hold cat/1\.png"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="both hold cat/1"):
        open_source([tmp_path / "a.zip", tmp_path / "a.zip"])


@pytest.mark.faults
def test_archives_that_are_no_classes_are_not_taken_for_such(tmp_path: Path) -> None:
    """img2dataset's, whose samples have texts and no classes; sources of one name."""
    for name in ("00000", "00001"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": PIXEL, f"{name}.txt": b"a cat"})
    with pytest.raises(SourceError, match=r"00000\.jpg is in no class folder"):
        open_source(tmp_path)
    for name in ("cats/images/1.png", "dogs/images/2.png"):
        write_folder(tmp_path / "same", {name: PIXEL})
    with pytest.raises(SourceError, match="two sources are called images"):
        open_source([tmp_path / "same" / name / "images" for name in ("cats", "dogs")])


@pytest.mark.faults
def test_a_split_among_other_archives_is_refused(tmp_path: Path) -> None:
    for name in ("n01", "n02", "ILSVRC2012_img_val"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}_1.png": PIXEL})
    with pytest.raises(SourceError, match=r"holds ILSVRC2012_img_val\.tar \(1\) beside"):
        open_source(tmp_path)


@pytest.mark.faults
def test_archives_that_must_be_unpacked_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds a\.tar\.gz \(1\), which cannot be read by place"):
        open_source(tmp_path)


@pytest.mark.faults
def test_parts_that_disagree_on_a_class_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", with_labels({"1.png": PIXEL}, [["1.png", 0], ["2.png", 1]]))
    write_zip(tmp_path / "b.zip", with_labels({"2.png": PIXEL}, [["2.png", 0]]))
    with pytest.raises(SourceError, match=r"2\.png is of class 1, and of 0"):
        open_source(tmp_path)


@pytest.mark.faults
def test_a_tar_that_is_cut_compressed_or_full_of_links_is_refused(tmp_path: Path) -> None:
    whole = tar(digits(each=3))
    path = tmp_path / "set.tar"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"set\.tar: cannot be read .*is it whole"):
        open_source(path)
    nested = class_tars(digits(each=3))
    name = max(nested)
    write_tar(path, nested | {name: nested[name][:2000]})
    with pytest.raises(SourceError, match=r"set\.tar: cannot be read"):
        open_source(path)
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(SourceError, match="compressed as a whole"):
        open_source(path)
    link = tarfile.TarInfo("cat/1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "w") as archive:
        archive.addfile(link)
    with pytest.raises(SourceError, match=r"cat/1\.png is a link"):
        open_source(path)
    write_zip(tmp_path / "twice.zip", {"cat/1.png": PIXEL, "dog/1.png": PIXEL})
    content = (tmp_path / "twice.zip").read_bytes().replace(b"dog/", b"cat/")
    (tmp_path / "twice.zip").write_bytes(content)
    with pytest.raises(SourceError, match=r"cat/1\.png is there more than once"):
        open_source(tmp_path / "twice.zip")
