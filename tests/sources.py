"""What shards are made of, in small: EDM2's archives and folders of images."""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sid_scale.data.shards import decode, read_index, read_shard
from sid_scale.demo.digits import digit_images

SHAPE = (8, 4, 4)
CLASSES = 5


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def png(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def latents(count: int = 40) -> dict[str, bytes]:
    """Files of an archive as EDM2's dataset tool writes it, sorted by class."""
    values = np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)
    names = [f"{i // 10:05d}/img-latents-{i:08d}.npy" for i in range(count)]
    labels = [[name, i * CLASSES // count] for i, name in enumerate(names)]
    files = {name: npy(value) for name, value in zip(names, values, strict=True)}
    return files | {"dataset.json": json.dumps({"labels": labels}).encode()}


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar(files))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def digits(each: int = 6, classes: int = 4) -> dict[str, bytes]:
    """Real digits as image files in class folders, in ImageNet's layout."""
    images, labels = digit_images()
    files: dict[str, bytes] = {}
    for label in range(classes):
        for number in (labels == label).nonzero()[:each, 0].tolist():
            pixels = images[number].permute(1, 2, 0).numpy()
            files[f"n{label:08d}/n{label:08d}_{number}.PNG"] = png(pixels)
    return files


def with_labels(files: dict[str, bytes], labels: Any) -> dict[str, bytes]:
    return files | {"dataset.json": json.dumps({"labels": labels}).encode()}


def contents(folder: Path) -> dict[str, bytes]:
    """A folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """What shards hold, by key."""
    index = read_index(folder)
    records = (record for shard in index.shards for record in read_shard(folder, shard))
    return {record.key: decode(record, index) for record in records}


# --- CIFAR-10 as its authors publish it ---------------------------------------------------


def cifar10_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 3, 32, 32), and classes (count,)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3, 32, 32), np.uint8), rng.integers(0, 10, count)


def cifar10_batches(images: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and classes of the five training batches and the test batch."""
    return list(zip(np.split(images, 6), np.split(labels, 6), strict=True))


def cifar10_python(images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """The files of cifar-10-python.tar.gz."""
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    batches = cifar10_batches(images, labels)
    return {
        f"cifar-10-batches-py/{name}": python2_pickle(*batch)
        for name, batch in zip(names, batches, strict=True)
    } | {"cifar-10-batches-py/readme.html": b"<html>"}


def cifar10_binary(images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """The files of cifar-10-binary.tar.gz."""
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    batches = cifar10_batches(images, labels)
    return {
        f"cifar-10-batches-bin/{name}": b"".join(
            bytes([label]) + image.tobytes() for image, label in zip(*batch, strict=True)
        )
        for name, batch in zip(names, batches, strict=True)
    } | {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2's cPickle writes it in protocol 2: all texts are strings of bytes."""

    def text(content: bytes) -> bytes:
        if len(content) < 256:
            return b"U" + bytes([len(content)]) + content
        return b"T" + struct.pack("<i", len(content)) + content

    def number(value: int) -> bytes:
        return b"M" + struct.pack("<H", value)

    rows = number(len(images)) + number(images[0].size) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    data = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    data += b"(K\1" + rows + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    classes = b"](" + b"".join(number(label) for label in labels) + b"e"
    names = b"](" + b"".join(text(b"frog_s_%06d.png" % n) for n in range(len(images))) + b"e"
    entries = {
        b"batch_label": text(b"training batch 1 of 5"),
        b"labels": classes,
        b"data": data,
        b"filenames": names,
    }
    pairs = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02}(" + pairs + b"u."


def edm_zip(images: np.ndarray, labels: np.ndarray | None) -> dict[str, bytes]:
    """The files that EDM's dataset_tool makes of images (N, 3, H, W)."""
    names = [f"{n // 1000:05d}/img{n:08d}.png" for n in range(len(images))]
    files = {n: png(image.transpose(1, 2, 0)) for n, image in zip(names, images, strict=True)}
    pairs = None if labels is None else [[n, int(k)] for n, k in zip(names, labels, strict=True)]
    return with_labels(files, pairs)
