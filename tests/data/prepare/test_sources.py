"""Sources: what is in them, of which class, and what is refused before any work is done."""

import json
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features

from sid_scale.codecs import IdentityCodec
from sid_scale.data.prepare.class_labels import ClassCount
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.keys import FLIPPED, KEY
from sid_scale.data.prepare.raw_samples import Source
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import ShardError
from sid_scale.errors import SidScaleError
from tests.data.test_shards import Exploit
from tests.sources import (
    CLASSES,
    SHAPE,
    digits,
    latents,
    npy,
    png,
    with_labels,
    write_folder,
    write_zip,
)

PIXEL = np.zeros((2, 2, 3), np.uint8)


def read(source: Source, numbers: list[int] | None = None) -> list[tuple[str, int, np.ndarray]]:
    chosen = np.arange(len(source)) if numbers is None else np.array(numbers)
    with pickle.loads(pickle.dumps(source.part(chosen))).open() as raws:
        return [(raw.key, raw.entry.label, raw.load()) for raw in raws]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_and_its_unpacked_folder_hold_the_same(tmp_path: Path, method: int) -> None:
    files = latents()
    packed = open_source(write_zip(tmp_path / "set.zip", files, method))
    unpacked = open_source(write_folder(tmp_path / "set", files))
    assert (packed.kind, len(packed), packed.num_classes) == ("latents", 40, CLASSES)
    for (key, label, array), other in zip(read(packed), read(unpacked), strict=True):
        assert (key, label) == other[:2]
        assert array.shape == SHAPE
        np.testing.assert_array_equal(array, other[2])
    assert read(packed)[17][:2] == ("00001/img-latents-00000017", 2)
    assert [sample[0] for sample in read(packed, [3, 0])] == [read(packed)[i][0] for i in (3, 0)]


def test_class_folders_are_numbered_by_name(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, digits(each=2) | {"n00000001/notes.txt": b"x"}))
    assert source.classes == [f"n{label:08d}" for label in range(4)]
    assert [label for _, label, _ in read(source)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert read(source)[0][2].shape == (32, 32, 3)


def test_of_splits_the_training_images_are_taken_however_deep_they_lie(tmp_path: Path) -> None:
    names = ["train/b/images/1.png", "train/a/2.png", "val/a/3.png"]
    source = open_source(write_folder(tmp_path, {name: png(PIXEL) for name in names}))
    assert source.classes == ["a", "b"]
    assert [(key, label) for key, label, _ in read(source)] == [
        ("train/a/2", 0),
        ("train/b/images/1", 1),
    ]


def test_whatever_files_are_called_each_has_a_key_of_its_own(tmp_path: Path) -> None:
    names = [
        *("a/my photo.v2 (1).jpg", "a/my photo.v2 (2).jpg", "a/.hidden.png", "a/é.png", "a/è.png"),
        *(
            "猫/0.png",
            "犬/0.png",
            "a/x y.png",
            "a/x_y.png",
            "a/1.png",
            "a/1.jpg",
            "a/1_flipped.png",
        ),
        f"a/{'long' * 30}.png",
    ]
    source = open_source(write_folder(tmp_path / "set", {name: png(PIXEL) for name in names}))
    keys = [key for key, _, _ in read(source)]
    assert len(set(keys)) == len(names) - 1  # all but the hidden one
    assert all(KEY.fullmatch(key + FLIPPED) for key in keys)
    mirrored = {key + FLIPPED for key in keys}
    assert not mirrored & set(keys)
    assert "a/x_y" in keys  # a name that a key can hold is the key


def test_images_are_known_by_many_suffixes_in_any_case(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "JPG": "JPEG"}
    kinds |= {"tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}
    kinds |= {"avif": "AVIF"} if features.check("avif") else {}
    square = np.full((8, 8, 3), 204, np.uint8)
    files = {f"a/{suffix}.{suffix}": png(square, kind) for suffix, kind in kinds.items()}
    source = open_source(write_folder(tmp_path, files | {"a/x.heic": b"", "a/y.HEIC": b""}))
    assert [pixels.shape for _, _, pixels in read(source)] == [(8, 8, 3)] * len(kinds)
    assert source.notes == [f"{tmp_path}: left out for their suffix: 2 files (2 .heic)"]


def test_a_name_that_leads_out_of_the_archive_leads_nowhere(tmp_path: Path) -> None:
    name = "../../etc/evil.npy"
    files = with_labels({name: npy(np.zeros(SHAPE, np.float32))}, [[name, 0]])
    [(key, _, _)] = read(open_source(write_zip(tmp_path / "set.zip", files)))
    assert re.fullmatch("etc_evil_[0-9a-f]+", key)


def test_pixel_shards_give_their_images_back(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
    write_shards(
        tmp_path,
        ((f"{i}", images[i], i % 3) for i in range(10)),
        codec=IdentityCodec().describe(),
        num_classes=3,
        shard_samples=4,
        dtype="uint8",
    )
    source = open_source(tmp_path)
    assert (source.kind, source.num_classes, source.shuffled) == ("images", 3, True)
    for number, (key, label, pixels) in zip((2, 3, 4, 5, 9, 0), read(source, [2, 3, 4, 5, 9, 0])):
        assert (key, label) == (str(number), number % 3)
        np.testing.assert_array_equal(pixels, images[number].transpose(1, 2, 0))


@pytest.mark.faults
def test_pixel_shards_are_held_to_the_classes_that_are_asked_for(tmp_path: Path) -> None:
    black = np.zeros((3, 4, 4), np.uint8)
    pair = [("a", black, 0), ("a_flipped", black, 1)]
    codec = IdentityCodec().describe()
    write_shards(tmp_path, pair, codec=codec, num_classes=2, shard_samples=2, dtype="uint8")
    with pytest.raises(SourceError, match="images of 2 classes, but the teacher has 10"):
        open_source(tmp_path, ClassCount(10, "the teacher"))
    assert open_source(tmp_path, unlabelled=True).num_classes == 0
    keys = [key for key, _, _ in read(open_source(tmp_path))]
    assert len({*keys, *(key + FLIPPED for key in keys)}) == 4


def test_unlabelled_sources_have_no_classes_if_that_is_wanted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", with_labels(latents(), []))
    with pytest.raises(SourceError, match="no labels; --unlabelled"):
        open_source(path)
    source = open_source(path, unlabelled=True)
    assert (source.num_classes, {label for _, label, _ in read(source)}) == (0, {0})


def test_a_json_that_says_that_there_are_no_labels_makes_a_set_without_classes(
    tmp_path: Path,
) -> None:
    """As EDM's dataset_tool writes it of FFHQ."""
    path = write_zip(tmp_path / "set.zip", with_labels(latents(), None))
    source = open_source(path)
    assert (source.num_classes, {label for _, label, _ in read(source)}) == (0, {0})
    assert source.notes == [
        f"{path}: dataset.json says that there are no labels: a set without classes"
    ]
    with pytest.raises(SourceError, match="no labels, but the teacher has 10 classes"):
        open_source(path, ClassCount(10, "the teacher"))


# What is refused


def labels_of(files: dict[str, bytes]) -> list[Any]:
    return json.loads(files["dataset.json"])["labels"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (lambda labels: labels[:-2], r"no class: .*img-latents-00000038\.npy.*\(2\)"),
        (lambda labels: [*labels, ["gone.npy", 0]], r"not there: gone\.npy \(1\)"),
        (lambda labels: [[n, -1] for n, _ in labels], "class -1 is not in 0"),
        (lambda labels: [[n, [0, 1]] for n, _ in labels], r"class \[0, 1\] is no integer"),
        (lambda labels: [[n, True] for n, _ in labels], "class True is no integer"),
        (lambda labels: {"a": 1}, "not of the form"),
        (lambda labels: [*labels, [labels[0][0], 3]], "is of class 0, and of 3"),
        (lambda labels: 7, "not of the form"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path: Path, labels: Any, complaint: str) -> None:
    files = latents()
    path = write_zip(tmp_path / "set.zip", with_labels(files, labels(labels_of(files))))
    with pytest.raises(SourceError, match=complaint):
        open_source(path)


@pytest.mark.faults
def test_a_class_beyond_the_number_that_is_given_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", latents())
    with pytest.raises(SourceError, match=r"img-latents-00000032\.npy: class 4 is not in 0\.\.3"):
        open_source(path, ClassCount(4, "--num-classes"))
    assert open_source(path, ClassCount(1000, "--num-classes")).num_classes == 1000


@pytest.mark.faults
def test_what_is_no_source_is_told_so(tmp_path: Path) -> None:
    for files, complaint in (
        ({"a.txt": b""}, r"neither latents nor images: no file is \.npy, "),
        ({"a/b.npy": b"", "a/b.png": b""}, "holds the one or the other"),
        ({"a/b.npy": b""}, r"no dataset\.json"),
        ({"b.png": b"", "a/b.png": b""}, r"b\.png is in no class folder"),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zip"
        with pytest.raises(SidScaleError, match=complaint):
            open_source(write_zip(path, files))
    with pytest.raises(SourceError, match="no such folder or archive"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(tmp_path / "text.zip")


@pytest.mark.faults
def test_a_truncated_or_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", latents())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(path)
    at = content.index(b"PK\1\2")
    path.write_bytes(content[: at + 8] + b"\1" + content[at + 9 :])  # the first member's flags
    with pytest.raises(SourceError, match="is encrypted"):
        open_source(path)
    at += 10
    path.write_bytes(content[:at] + struct.pack("<H", 93) + content[at + 2 :])
    with pytest.raises(SourceError, match="compressed by method 93"):
        open_source(path)


@pytest.mark.faults
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_found_by_its_checksum(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "set.zip", latents(), method)
    content = bytearray(path.read_bytes())
    content[600] ^= 1  # in the first member
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        read(open_source(path))


@pytest.mark.faults
def test_hostile_arrays_are_refused_and_neither_run_nor_believed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    huge = npy(np.zeros(SHAPE, np.float32)).replace(b"(8, 4, 4)", b"(8, 4, 9999999999)")
    for content in (
        npy(np.array([Exploit(trace)], dtype=object), allow_pickle=True),
        pickle.dumps(Exploit(trace)),
        huge,
        npy(np.zeros(SHAPE, np.float32))[:-1],
        npy(np.zeros(SHAPE, np.int32)),
        b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535,
        b"",
    ):
        path = write_zip(tmp_path / "set.zip", with_labels({"a.npy": content}, [["a.npy", 0]]))
        with pytest.raises(SourceError, match=r"no sound \.npy"):
            read(open_source(path))
    assert not trace.exists()


@pytest.mark.faults
def test_latent_shards_are_no_images(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        [("a", np.zeros((2, 4, 4)), 0)],
        codec={"kind": "vae"},
        num_classes=1,
        shard_samples=1,
    )
    with pytest.raises(
        SourceError,
        match=r"holds float32 \(2, 4, 4\) of 1 classes, codec vae; .* only those of uint8",
    ):
        open_source(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(ShardError, match="missing"):
        open_source(tmp_path)
