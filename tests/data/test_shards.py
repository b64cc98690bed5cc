"""Shards: what is written is exactly what is read, and nothing else is accepted."""

import dataclasses
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sid_scale.codecs import IdentityCodec, VAECodec, normalisation
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.prepare.verify import verify_shards
from sid_scale.data.shards import (
    Shard,
    ShardError,
    decode,
    read_index,
    read_shard,
)

SHAPE = (4, 3, 3)
# Fits the raw latents of `samples`, whose means and stds are both unit normal.
CODEC = VAECodec("vae", *normalisation([0.0, -0.15], [2**0.5, 2**0.5])).describe()


def samples(count: int = 10) -> list[tuple[str, np.ndarray, int]]:
    values = np.random.default_rng(0).normal(size=(count, *SHAPE))
    return [(f"digits/{i:05d}", values[i], i % 3) for i in range(count)]


def write(folder: Path, data: Any = None, **changes: Any) -> Path:
    settings: dict[str, Any] = {"codec": CODEC, "num_classes": 3}
    write_shards(folder, data or samples(), shard_samples=4, **(settings | changes))
    return folder


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_tar(folder: Path, members: dict[str, bytes]) -> None:
    """Replace the first shard by these members, and make the index believe it."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shards = json.loads((folder / "index.json").read_text())["shards"]
    shards[0] = dataclasses.asdict(Shard.of(path, shards[0]["samples"]))
    edit_index(folder, shards=shards)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def four(content: bytes | None = None, label: bytes = b"0") -> dict[str, bytes]:
    """Members of a shard of four samples, the last of them with this content."""
    good = npy(np.zeros(SHAPE, np.float32))
    members = {f"{i}.{kind}": b"0" if kind == "cls" else good for i in "012" for kind in KINDS}
    return members | {"3.cls": label, "3.npy": good if content is None else content}


KINDS = ("cls", "npy")


class Exploit:
    """Unpickling this creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def read_first(folder: Path) -> list[tuple[np.ndarray, int]]:
    index = read_index(folder)
    return [decode(record, index) for record in read_shard(folder, index.shards[0])]


# What is written


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    folder = write(tmp_path / "set", dtype=dtype)
    index = verify_shards(folder)
    assert [shard.samples for shard in index.shards] == [4, 4, 2]
    assert (index.sample_shape, index.dtype, index.num_classes) == (SHAPE, dtype, 3)
    assert index.class_histogram == (4, 3, 3)
    assert index.codec == CODEC
    back = [decode(r, index) for shard in index.shards for r in read_shard(folder, shard)]
    for (_, stored, label), (array, read) in zip(samples(), back, strict=True):
        np.testing.assert_array_equal(array, stored.astype(dtype))
        assert read == label


def test_pixels_that_are_written_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 5, 5), dtype=np.uint8)
    data = [(f"{i}", image, i % 3) for i, image in enumerate(images)]
    write(tmp_path, data, codec=IdentityCodec().describe(), dtype="uint8")
    index = verify_shards(tmp_path)
    assert (index.sample_shape, index.dtype) == ((3, 5, 5), "uint8")
    back = [decode(r, index)[0] for shard in index.shards for r in read_shard(tmp_path, shard)]
    np.testing.assert_array_equal(np.stack(back), images)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["index.json", *(f"shard-{i:06d}.tar" for i in range(3))]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_reading_may_begin_inside_a_shard_and_end_before_its_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    records = read_shard(folder, read_index(folder).shards[1], first=2)
    assert next(records).key == "digits/00006"
    records.close()


def test_webdataset_reads_the_shards_through_a_pipe(tmp_path: Path) -> None:
    source = f"pipe:cat {write(tmp_path / 'set')}"
    records = read_shard(source, read_index(source).shards[0])
    assert next(records).key == "digits/00000"
    records.close()


# What is refused when writing


@pytest.mark.faults
@pytest.mark.parametrize(
    ("key", "stored", "label", "complaint"),
    [
        ("bad", np.zeros((4, 3, 2)), 0, r"'bad'.*shape \(4, 3, 2\)"),
        ("bad", np.full(SHAPE, np.nan), 0, "'bad'.*NaN"),
        ("bad", np.full(SHAPE, 1e6), 0, "'bad'.*infinity.*float16"),
        ("bad", np.zeros(SHAPE), 3, r"'bad'.*class 3 is not in 0\.\.2"),
        ("bad", np.zeros(SHAPE), -1, "'bad'.*class -1"),
        ("digits/00001", np.zeros(SHAPE), 0, "'digits/00001'.*written before"),
        ("a.b", np.zeros(SHAPE), 0, r"'a\.b'.*a key is"),
    ],
)
def test_a_bad_sample_is_refused_by_its_key(
    tmp_path: Path, key: str, stored: np.ndarray, label: int, complaint: str
) -> None:
    with pytest.raises(ShardError, match=complaint):
        write(tmp_path, [*samples(), (key, stored, label)], dtype="float16")
    assert not (tmp_path / "index.json").exists()


@pytest.mark.faults
def test_numbers_are_not_made_pixels(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="'digits/00000': float64 cannot be stored as uint8"):
        write(tmp_path, dtype="uint8")


@pytest.mark.faults
def test_a_data_set_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="already holds a data set"):
        write(write(tmp_path))


# What is refused when reading


@pytest.mark.faults
def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"index\.json: no index can be read.*cut short"):
        read_index(tmp_path)
    with pytest.raises(ShardError, match=r"nowhere/index\.json: no index.*no such folder"):
        read_index(tmp_path / "nowhere")


@pytest.mark.faults
@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', '{"shards": []}', "\xff"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (write(tmp_path) / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ShardError, match=r"index\.json: damaged"):
        read_index(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 4},
        {"class_histogram": [10, 1, 1]},
        {"dtype": "object"},
        {"sample_shape": [3, 3, 3]},
        {"shards": [{"name": "../evil.tar", "samples": 10, "bytes": 1, "sha256": ""}]},
        {"shards": [{"name": "pipe:evil", "samples": 10, "bytes": 1, "sha256": ""}]},
    ],
)
def test_an_index_that_contradicts_itself_is_damaged(tmp_path: Path, change: Any) -> None:
    edit_index(write(tmp_path), **change)
    with pytest.raises(ShardError, match=r"index\.json: damaged"):
        read_index(tmp_path)


@pytest.mark.faults
def test_an_unknown_format_version_is_refused(tmp_path: Path) -> None:
    edit_index(write(tmp_path), format_version=99)
    with pytest.raises(ShardError, match="format version 99"):
        read_index(tmp_path)


@pytest.mark.faults
def test_a_missing_or_resized_shard_is_found_with_the_index(tmp_path: Path) -> None:
    shard = write(tmp_path) / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"shard-000001\.tar: \d+ bytes, not"):
        read_index(tmp_path)
    shard.unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar: missing"):
        read_index(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["3.pyd", "3.pkl", "3.pickle", "3.pth", "README"])
def test_a_member_that_could_be_executed_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    folder, trace = write(tmp_path / "set"), tmp_path / "executed"
    write_tar(folder, four() | {name: pickle.dumps(Exploit(trace))})
    with pytest.raises(ShardError, match=rf"shard-000000\.tar.*'{name}'"):
        read_first(folder)
    assert not trace.exists()


@pytest.mark.faults
def test_a_pickle_inside_an_npy_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, trace = write(tmp_path / "set"), tmp_path / "executed"
    write_tar(folder, four(npy(np.array([Exploit(trace)], dtype=object), allow_pickle=True)))
    with pytest.raises(ShardError, match=r"shard-000000\.tar: sample '3'"):
        read_first(folder)
    write_tar(folder, four(pickle.dumps(Exploit(trace))))
    with pytest.raises(ShardError, match=r"shard-000000\.tar: sample '3'"):
        read_first(folder)
    assert not trace.exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "label"),
    [
        (npy(np.zeros((4, 3, 2), np.float32)), b"0"),
        (npy(np.zeros(SHAPE, np.float64)), b"0"),
        (npy(np.full(SHAPE, np.nan, np.float32)), b"0"),
        (npy(np.zeros(SHAPE, np.float32))[:-4], b"0"),
        (b"", b"0"),
        (None, b"3"),
        (None, b"zero"),
    ],
)
def test_a_bad_sample_is_named_with_shard_and_key(
    tmp_path: Path, content: bytes | None, label: bytes
) -> None:
    write_tar(write(tmp_path), four(content, label))
    with pytest.raises(ShardError, match=r"shard-000000\.tar: sample '3'"):
        read_first(tmp_path)


@pytest.mark.faults
def test_another_number_of_samples_than_the_index_says_is_an_error(tmp_path: Path) -> None:
    write_tar(write(tmp_path), {k: v for k, v in four().items() if k[0] != "3"})
    with pytest.raises(ShardError, match="ends after 3 of 4 samples"):
        read_first(tmp_path)
    write_tar(tmp_path, four() | {"4.cls": b"0", "4.npy": b""})
    with pytest.raises(ShardError, match="more samples than the 4"):
        read_first(tmp_path)
    write_tar(tmp_path, {k: v for k, v in four().items() if k != "3.npy"})
    with pytest.raises(ShardError, match=r"sample '3' lacks \.npy"):
        read_first(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("kept", [0, 100, 512, 1000, 1536, 3072, 4 * 1024 + 1])
def test_a_truncated_shard_is_an_error_wherever_it_was_cut(tmp_path: Path, kept: int) -> None:
    write(tmp_path)
    index = read_index(tmp_path)
    shard = tmp_path / index.shards[0].name
    shard.write_bytes(shard.read_bytes()[:kept])  # after the index was read: sizes were right
    with pytest.raises(ShardError, match=r"shard-000000\.tar"):
        list(read_shard(tmp_path, index.shards[0]))


@pytest.mark.faults
def test_verification_finds_a_shard_swapped_for_another_of_the_same_size(tmp_path: Path) -> None:
    write(tmp_path)
    one, other = (tmp_path / f"shard-{i:06d}.tar" for i in (0, 1))
    one.write_bytes(other.read_bytes())
    with pytest.raises(ShardError, match=r"shard-000000\.tar: another SHA-256"):
        verify_shards(tmp_path)
