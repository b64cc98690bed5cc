"""CIFAR-10's own archives: the shards of EDM's zip of it, and clear errors for what is damaged."""

import gzip
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sid_scale.cli import main
from sid_scale.data.prepare import cifar10
from sid_scale.data.prepare.class_labels import ClassCount
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import read_index
from tests.sources import (
    cifar10_binary,
    cifar10_images,
    cifar10_python,
    contents,
    edm_zip,
    png,
    samples,
    tar,
    write_folder,
    write_tar,
    write_zip,
)

EACH = 20  # images of a batch here
IMAGES, LABELS = cifar10_images(6 * EACH)
PYTHON, BINARY = cifar10_python(IMAGES, LABELS), cifar10_binary(IMAGES, LABELS)
FORMS = pytest.mark.parametrize("files", [PYTHON, BINARY], ids=["python", "binary"])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES_A_BATCH", EACH)


def write_gz(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar(files)))
    return path


def shards(source: Path, out: Path, *options: str) -> Path:
    words = ["shards", "--source", str(source), "--out", str(out), "--workers", "1"]
    assert main([*words, "--shard-size", "200kB", *options]) == 0
    return out


def test_all_forms_give_the_shards_of_edms_zip(tmp_path: Path) -> None:
    train = 5 * EACH
    zipped = write_zip(tmp_path / "cifar10-32x32.zip", edm_zip(IMAGES[:train], LABELS[:train]))
    wanted = contents(shards(zipped, tmp_path / "zip"))
    index = read_index(tmp_path / "zip")
    assert (index.sample_shape, index.dtype) == ((3, 32, 32), "uint8")
    assert (index.samples, index.num_classes) == (train, 10)
    assert len(index.shards) > 1
    sources = [
        write_gz(tmp_path / "cifar-10-python.tar.gz", PYTHON),
        write_gz(tmp_path / "cifar-10-binary.tar.gz", BINARY),
        write_tar(tmp_path / "plain.tar", PYTHON),
        write_folder(tmp_path / "unpacked", BINARY),
        write_folder(tmp_path / "unpacked", PYTHON) / "cifar-10-batches-py",
    ]
    for number, source in enumerate(sources):
        made = contents(shards(source, tmp_path / str(number)))
        made.pop("recipe.json")  # says what the source was
        assert made == {name: wanted[name] for name in wanted if name != "recipe.json"}


@FORMS
def test_the_test_images_are_there_if_asked_for(tmp_path: Path, files: dict[str, bytes]) -> None:
    source = write_gz(tmp_path / "cifar.tar.gz", files)
    found = samples(shards(source, tmp_path / "out", "--split", "test", "--unlabelled"))
    assert len(found) == EACH
    for number in range(EACH):
        pixels, label = found[f"00000/img{number:08d}"]
        np.testing.assert_array_equal(pixels, IMAGES[5 * EACH + number])
        assert label == 0
    assert read_index(tmp_path / "out").num_classes == 0


def test_interrupted_shards_go_on_and_another_split_is_another_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_gz(tmp_path / "cifar.tar.gz", PYTHON)
    before = contents(shards(source, tmp_path / "out"))
    assert contents(shards(source, tmp_path / "out")) == before
    words = ["shards", "--source", str(source), "--out", str(tmp_path / "out")]
    assert main([*words, "--split", "test"]) != 0
    assert "made otherwise" in capsys.readouterr().err


# What is refused


@pytest.mark.faults
@FORMS
def test_a_missing_batch_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    less = {name: content for name, content in files.items() if "data_batch_3" not in name}
    for source in (write_gz(tmp_path / "a.tar.gz", less), write_folder(tmp_path / "b", less)):
        with pytest.raises(SourceError, match=r"lacks data_batch_3(\.bin)? of CIFAR-10; fetch it"):
            open_source(source)


@pytest.mark.faults
@FORMS
@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_truncated_archive_is_named(tmp_path: Path, files: dict[str, bytes], cut: float) -> None:
    whole = write_gz(tmp_path / "cifar.tar.gz", files).read_bytes()
    (tmp_path / "cifar.tar.gz").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(SourceError, match=r"cifar\.tar\.gz: .*fetch it again"):
        open_source(tmp_path / "cifar.tar.gz")


@pytest.mark.faults
@FORMS
def test_a_truncated_batch_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    cut = {name: content[:-3073] for name, content in files.items()}
    for source in (write_gz(tmp_path / "a.tar.gz", cut), write_folder(tmp_path / "b", cut)):
        with pytest.raises(SourceError, match=r": data_batch_1(\.bin)?: .*fetch it again"):
            open_source(source)


class Exploit:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.faults
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_batch_that_would_run_something_is_refused_and_not_run(
    tmp_path: Path, protocol: int
) -> None:
    name, trace = "cifar-10-batches-py/data_batch_2", tmp_path / "executed"
    hostile = {"data": Exploit(trace), "labels": []}
    files = PYTHON | {name: pickle.dumps(hostile, protocol)}
    with pytest.raises(SourceError, match=r"data_batch_2: .*Nothing was run"):
        open_source(write_gz(tmp_path / "cifar.tar.gz", files))
    assert not trace.exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    "batch",
    [
        {"data": [1, 2], "labels": [0]},
        {"data": np.zeros((EACH, 3072)), "labels": [0] * EACH},
        {"data": np.zeros((EACH, 3071), np.uint8), "labels": [0] * EACH},
        {"data": np.zeros((EACH, 3072), np.uint8), "labels": [0] * (EACH - 1)},
        {"data": np.zeros((EACH, 3072), np.uint8), "labels": [10] * EACH},
        {"data": np.zeros((EACH, 3072), np.uint8), "labels": [-1] * EACH},
        {"data": np.zeros((EACH, 3072), np.uint8), "labels": [0.5] * EACH},
        {"data": np.zeros((EACH, 3072), np.uint8), "labels": "frogs"},
        {"data": np.zeros((EACH, 3072), np.uint8)},
        {"labels": [0] * EACH},
        [],
    ],
)
def test_a_batch_of_another_form_is_named(tmp_path: Path, batch: Any) -> None:
    files = PYTHON | {"cifar-10-batches-py/data_batch_2": pickle.dumps(batch, 2)}
    with pytest.raises(SourceError, match="data_batch_2: "):
        open_source(write_gz(tmp_path / "cifar.tar.gz", files))


@pytest.mark.faults
def test_a_class_out_of_range_in_records_is_named(tmp_path: Path) -> None:
    name = "cifar-10-batches-bin/data_batch_2.bin"
    files = BINARY | {name: b"\x0a" + BINARY[name][1:]}
    with pytest.raises(SourceError, match=r"data_batch_2\.bin: class 10 is not in 0\.\.9"):
        open_source(write_gz(tmp_path / "cifar.tar.gz", files))


@pytest.mark.faults
def test_links_and_repetitions_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "twice.tar", PYTHON)
    with tarfile.open(path, "a") as archive:
        archive.add(__file__, "cifar-10-batches-py/data_batch_4")
    with pytest.raises(SourceError, match=r"^\S+twice\.tar: data_batch_4 is there more than once"):
        open_source(path)
    less = {name: content for name, content in PYTHON.items() if "data_batch_4" not in name}
    path = write_tar(tmp_path / "link.tar", less)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(SourceError, match=r"^\S+link\.tar: data_batch_4 is no plain file"):
        open_source(path)


@pytest.mark.faults
def test_other_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    source = write_gz(tmp_path / "cifar.tar.gz", BINARY)
    with pytest.raises(SourceError, match="images of 10 classes, but the teacher has 1000"):
        open_source(source, ClassCount(1000, "the teacher"))


@pytest.mark.faults
def test_a_split_of_something_else_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"a/1.png": png(np.zeros((4, 4, 3), np.uint8))})
    with pytest.raises(SourceError, match="--split is for CIFAR-10's own archives"):
        open_source(source, split="test")


@pytest.mark.faults
def test_another_archive_that_is_compressed_is_still_refused(tmp_path: Path) -> None:
    source = write_gz(tmp_path / "set.tar.gz", {"a/1.png": b""})
    with pytest.raises(SourceError, match="compressed as a whole"):
        open_source(source)
