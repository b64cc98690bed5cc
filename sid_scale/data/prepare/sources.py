"""What shards are made of: latents or images in a folder or a zip archive, or pixel shards.

A source lists its samples - a key, a class, a place - and opens none of them; `part` takes some
out, to be read here or in another process.

Classes come from EDM2's `dataset.json`, {"labels": [[file, class], ...]}, or, of images, from
folders in ImageNet's layout: one a class, in the order of their names.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sid_scale.data.prepare.class_labels import LABELS, labels_by_folder, labels_in_json
from sid_scale.data.prepare.files import Files, Part, SourceError
from sid_scale.data.prepare.images import SUFFIXES, decode_image
from sid_scale.data.prepare.pixel_shards import PixelShards
from sid_scale.data.prepare.places import open_files
from sid_scale.data.prepare.raw_samples import Raw, Source
from sid_scale.data.prepare.shard_writer import checked_key
from sid_scale.data.shards import INDEX

LATENT = ".npy"
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_/-]")


def open_source(
    path: str | Path, num_classes: int | None = None, unlabelled: bool = False
) -> Source:
    """The source in a folder or zip archive.

    Args:
        num_classes: by default as many as there are class folders, or up to the largest label.
        unlabelled: samples have no class, whatever the source says.

    Raises:
        SourceError: it cannot be read, its labels do not fit its files, a class is out of range,
            or two files would have one key.
        ShardError: it holds shards that are damaged.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        return PixelShards(path)
    return FileSource(path, open_files(path), num_classes, unlabelled)


def key_of(name: str) -> str:
    """The key of a file: its name without the suffix, `_` for what a key cannot hold."""
    return _NOT_IN_KEYS.sub("_", name[: name.rfind(".")]).lstrip("_/")


class FileSource:
    """Samples in files of their own; see `open_source`."""

    shuffled = False

    def __init__(self, path: Path, files: Files, num_classes: int | None, unlabelled: bool):
        self.path, self._files = path, files
        latents = [i for i, name in enumerate(files.names) if name.endswith(LATENT)]
        images = [i for i, name in enumerate(files.names) if name.lower().endswith(SUFFIXES)]
        if not latents and not images:
            suffixes = ", ".join((LATENT, *SUFFIXES))
            raise SourceError(f"{path} holds neither latents nor images: no file is {suffixes}")
        if latents and images:
            raise SourceError(
                f"{path} holds {len(latents)} {LATENT} files and {len(images)} images: a source "
                "holds the one or the other"
            )
        self.kind = "latents" if latents else "images"
        self.classes: list[str] = []
        numbers = latents or images
        if unlabelled:
            labels = [0] * len(numbers)
        elif LABELS in files.names:
            labels = labels_in_json(path, files, numbers)
        elif latents:
            raise SourceError(f"{path}: there is no {LABELS} that says what class a file is of")
        else:
            numbers, labels, self.classes = labels_by_folder(path, files, numbers)
        order = sorted(range(len(numbers)), key=lambda i: files.names[numbers[i]])
        self._numbers = np.array(numbers)[order]
        self._labels = np.array(labels)[order]
        known = 0 if unlabelled else max(len(self.classes), int(self._labels.max()) + 1)
        self.num_classes = num_classes or known
        self.fingerprint = self._check()

    def __len__(self) -> int:
        return len(self._numbers)

    def part(self, numbers: np.ndarray) -> "FilePart":
        chosen = self._numbers[numbers].tolist()
        names = [self._files.names[number] for number in chosen]
        labels = self._labels[numbers].tolist()
        return FilePart(self.path, self.kind, names, labels, self._files.part(chosen))

    def _check(self) -> str:
        """Looks at every key and class; returns the fingerprint."""
        digest = hashlib.sha256()
        seen: dict[str, str] = {}
        for number, label in zip(self._numbers.tolist(), self._labels.tolist(), strict=True):
            name = self._files.names[number]
            if not 0 <= label < max(1, self.num_classes):
                raise SourceError(
                    f"{self.path}: {name}: class {label} is not in 0..{self.num_classes - 1}"
                )
            key = checked_key(key_of(name))
            if (other := seen.setdefault(key, name)) is not name:
                raise SourceError(
                    f"{self.path}: {other} and {name} would both have the key {key!r}; rename one"
                )
            digest.update(f"{name}\0{label}\0{self._files.check(number)}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class FilePart:
    """Some samples of a FileSource."""

    path: Path
    kind: str
    names: list[str]
    labels: list[int]
    files: Part

    @contextmanager
    def open(self) -> Iterator[Iterator[Raw]]:
        with self.files.open() as reads:
            yield (
                Raw(key_of(name), label, f"{self.path}: {name}", partial(_load, self.kind, read))
                for name, label, read in zip(self.names, self.labels, reads, strict=True)
            )


def _load(kind: str, read: Callable[[], bytes]) -> np.ndarray:
    content = read()
    try:
        return _latents(content) if kind == "latents" else decode_image(content)
    except ValueError as error:
        raise SourceError(str(error)) from error


def _latents(content: bytes) -> np.ndarray:
    """The numbers in a .npy, whose header is not believed before they are measured."""
    npy = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(npy) != (1, 0):
            raise ValueError("not version 1.0")
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(npy)
    except Exception as error:  # whatever a hostile header provokes in Python's parser
        raise ValueError(f"no sound {LATENT}: {error}") from error
    size = len(content) - npy.tell()
    if dtype.kind != "f" or dtype.itemsize * math.prod(shape) != size:
        raise ValueError(f"no sound {LATENT}: {dtype} {shape} in {size} bytes")
    numbers = np.frombuffer(content, dtype, offset=npy.tell())
    return numbers.reshape(shape, order="F" if transposed else "C")
