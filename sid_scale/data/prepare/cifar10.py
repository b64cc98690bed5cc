"""CIFAR-10 as its authors publish it: `cifar-10-python.tar.gz` and `cifar-10-binary.tar.gz`.

Either is read as it is, as a plain tar, or unpacked. The python archive's pickles are read without
running them. Both hold the same images in the same order, which is that of the archive that EDM's
dataset_tool makes of them; keys are that archive's, so that all three give the same shards.
"""

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from sid_scale.data.prepare.class_labels import ClassCount
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.keys import key_of
from sid_scale.data.prepare.raw_samples import Entry, Raw
from sid_scale.pickles.reader import PickleError, open_pickle
from sid_scale.pickles.values import array, mapping, numbers

CLASSES = 10
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32  # bytes of an image: all red, then green, then blue
IMAGES_A_BATCH = 10_000
MOST_BYTES = 1 << 26  # of a batch
TRAIN, TEST = "train", "test"
BATCHES = {TRAIN: [f"data_batch_{n}" for n in range(1, 6)], TEST: ["test_batch"]}
_FETCH = "fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html"
_UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)


class Form(NamedTuple):
    """One of the two forms: its folder, what its files' names end with, how a file is read."""

    folder: str
    suffix: str
    read: Callable[[str, bytes], "Batch"]


class Batch(NamedTuple):
    """Images of one file, uint8 (N, PIXELS), and their classes (N,)."""

    pixels: np.ndarray
    labels: np.ndarray


def find_form(path: Path) -> Form | None:
    """The form of CIFAR-10 that lies in an archive or a folder; None: it is something else."""
    if path.is_dir():
        return next((form for form in FORMS if _unpacked_folder(path, form)), None)
    if not path.is_file():
        return None
    try:
        # The first folder or file tells: to look at more of a large archive would take long.
        with tarfile.open(path, "r|*") as tar:
            folder = next((parts[0] for member in tar if (parts := _parts(member))), "")
    except _UNREADABLE:
        return None
    return next((form for form in FORMS if form.folder == folder), None)


class Cifar10:
    """One split of CIFAR-10 as a source, in the order of its files.

    Args:
        form: what `find_form` has found at `path`.
        split: TRAIN or TEST.

    Raises:
        SourceError: it is damaged or incomplete, or other than 10 classes are wanted.
    """

    kind = "images"
    shuffled = False

    def __init__(
        self,
        path: Path,
        form: Form,
        split: str = TRAIN,
        expected: ClassCount | None = None,
        unlabelled: bool = False,
    ):
        if expected and not unlabelled and expected.number != CLASSES:
            raise SourceError(
                f"{path} holds images of {CLASSES} classes, but {expected.origin} has "
                f"{expected.number}"
            )
        self.num_classes = 0 if unlabelled else CLASSES
        self.classes: list[str] = []
        self.path = path
        files = _files_of(path, form, split)
        batches = [form.read(f"{path}: {name}", content) for name, content in files.items()]
        self._pixels = np.concatenate([batch.pixels for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches]).astype(np.uint8)
        self._labels = np.zeros_like(labels) if unlabelled else labels
        digest = hashlib.sha256(self._pixels.data)
        digest.update(self._labels.data)
        self.fingerprint = digest.hexdigest()
        self.notes = [f"{path}: CIFAR-10, the {len(labels):,} images of {split}"]

    def __len__(self) -> int:
        return len(self._labels)

    def part(self, numbers: np.ndarray) -> "Cifar10Part":
        return Cifar10Part(self.path, numbers, self._pixels[numbers], self._labels[numbers])


@dataclass(frozen=True)
class Cifar10Part:
    """Some images; all there are take 150 MB."""

    path: Path
    numbers: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray

    @contextmanager
    def open(self) -> Iterator[Iterator[Raw]]:
        yield self._raws()

    def _raws(self) -> Iterator[Raw]:
        for number, pixels, label in zip(self.numbers, self.pixels, self.labels, strict=True):
            name = f"{number // 1000:05d}/img{number:08d}.png"  # as EDM's dataset_tool has it
            load = partial(pixels.reshape(SHAPE).transpose, 1, 2, 0)
            yield Raw(key_of(name), Entry(name, int(label), ""), f"{self.path}: {name}", load)


# --- files --------------------------------------------------------------------------------


def _unpacked_folder(path: Path, form: Form) -> Path | None:
    """The folder that the files lie in: `path` itself, or the one in it that the archive has."""
    names = [name + form.suffix for split in BATCHES.values() for name in split]
    folders = (path, path / form.folder)
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """The folders that a member lies in, and its name."""
    return PurePosixPath(member.name).parts


def _files_of(path: Path, form: Form, split: str) -> dict[str, bytes]:
    """The contents of a split's files, in order.

    Raises:
        SourceError: one is missing, or cannot be read.
    """
    wanted = [name + form.suffix for name in BATCHES[split]]
    try:
        found = _unpacked(path, form, wanted) if path.is_dir() else _packed(path, form, wanted)
    except SourceError:
        raise
    except _UNREADABLE as error:
        raise SourceError(f"{path}: cannot be read to its end ({error}); {_FETCH}") from error
    if missing := [name for name in wanted if name not in found]:
        raise SourceError(f"{path}: lacks {', '.join(missing)} of CIFAR-10; {_FETCH}")
    return {name: found[name] for name in wanted}


def _unpacked(path: Path, form: Form, wanted: list[str]) -> dict[str, bytes]:
    folder = _unpacked_folder(path, form) or path
    found: dict[str, bytes] = {}
    for name in wanted:
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                found[name] = _content(f"{folder}: {name}", file)
    return found


def _packed(path: Path, form: Form, wanted: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            *_, name = ("", *_parts(member))
            if _parts(member) != (form.folder, name) or name not in wanted:
                continue
            if name in found:
                raise SourceError(f"{path}: {name} is there more than once; {_FETCH}")
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:
                raise SourceError(f"{path}: {name} is no plain file; {_FETCH}")
            found[name] = _content(f"{path}: {name}", file)
    return found


def _content(where: str, file: IO[bytes]) -> bytes:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise SourceError(f"{where} is larger than a batch of CIFAR-10 can be; {_FETCH}")
    return content


# --- their contents -----------------------------------------------------------------------


def _read_binary(where: str, content: bytes) -> Batch:
    """Records of a class and an image."""
    records = IMAGES_A_BATCH * (1 + PIXELS)
    if len(content) != records:
        raise SourceError(f"{where}: {len(content)} bytes, not {records}; {_FETCH}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(where, Batch(rows[:, 1:], rows[:, 0]))


def _read_pickle(where: str, content: bytes) -> Batch:
    """A dict of Python 2: "data", uint8 (N, PIXELS), and "labels", a list."""
    with tempfile.NamedTemporaryFile(prefix="cifar-10-") as file:
        file.write(content)
        file.flush()
        try:
            with open_pickle(file.name) as held:
                entries = mapping(held, "the batch")
                pixels = array(entries.get("data"), "data")
                labels = numbers(entries.get("labels"), "labels")
        except PickleError as error:
            why = str(error).removeprefix(f"{file.name}: ")
            raise SourceError(f"{where}: {why}") from error
    if not all(type(label) is int and abs(label) < CLASSES for label in labels):
        raise SourceError(f"{where}: labels that are no classes of CIFAR-10; {_FETCH}")
    return _checked(where, Batch(pixels, np.array(labels)))


def _checked(where: str, batch: Batch) -> Batch:
    """The batch, if it is one.

    Raises:
        SourceError: it is not.
    """
    wanted = (IMAGES_A_BATCH, PIXELS)
    pixels, labels = batch
    if pixels.dtype != np.uint8 or pixels.shape != wanted or labels.shape != wanted[:1]:
        raise SourceError(
            f"{where}: {pixels.dtype} {pixels.shape} with {len(labels)} labels, not uint8 "
            f"{wanted}; {_FETCH}"
        )
    if (outside := labels[(labels < 0) | (labels >= CLASSES)]).size:
        raise SourceError(f"{where}: class {outside[0]} is not in 0..{CLASSES - 1}; {_FETCH}")
    return batch


FORMS = (
    Form("cifar-10-batches-py", "", _read_pickle),
    Form("cifar-10-batches-bin", ".bin", _read_binary),
)
