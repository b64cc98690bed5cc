"""What shards are made of, in small: EDM2's archives and folders of images."""

import io
import json
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
