"""What shards are made of: latents or images in folders and archives, pixel shards, or CIFAR-10.

A source lists its samples - a key, a class, a place - and opens none of them; `part` takes some
out, to be read here or in another process. Which folder is meant, and which class a file is of, is
decided in folder_levels.py and class_labels.py.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sid_scale.data.prepare.cifar10 import TRAIN, Cifar10, find_form
from sid_scale.data.prepare.class_labels import ClassCount, Labels, find_labels
from sid_scale.data.prepare.files import Files, Part, SourceError, first_repeated
from sid_scale.data.prepare.folder_levels import Level, find_level
from sid_scale.data.prepare.images import decode_image
from sid_scale.data.prepare.keys import hashed_key, key_of
from sid_scale.data.prepare.latents import decode_latents
from sid_scale.data.prepare.pixel_shards import PixelShards
from sid_scale.data.prepare.places import describe, open_files
from sid_scale.data.prepare.raw_samples import Entry, GoneSample, Raw, Source
from sid_scale.data.shards import INDEX


def open_source(
    paths: str | Path | Sequence[str | Path],
    expected: ClassCount | None = None,
    *,
    unlabelled: bool = False,
    empty_classes: bool = False,
    refused: Iterable[Entry] = (),
    split: str | None = None,
) -> Source:
    """The source in a folder or archive, or in several that hold parts of one data set.

    Args:
        expected: how many classes there must be; by default as many as there are class folders, or
            up to the largest label.
        unlabelled: samples have no class, whatever the source says.
        empty_classes: class folders without samples are classes all the same.
        refused: samples, as they were, that have no place in a data set. One that is gone since
            keeps its number, and one that is mended its part in the fingerprint, so that all work
            on the others holds.
        split: cifar10.TRAIN (also if it is None) or TEST, of CIFAR-10 as its authors publish it.

    Raises:
        SourceError: it cannot be read, its labels do not fit its files, a class is out of range, or
            it has no such splits.
        ShardError: it holds shards that are damaged.
    """
    places = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if len(places) == 1 and (form := find_form(places[0])):
        return Cifar10(places[0], form, split or TRAIN, expected, unlabelled)
    if split is not None:
        raise SourceError(
            f"{describe(places)}: --split is for CIFAR-10's own archives; of others give the "
            "folder or archive of the split that is meant"
        )
    if len(places) == 1 and (places[0] / INDEX).is_file():
        return PixelShards(places[0], expected, unlabelled)
    where, files = describe(places), open_files(places)
    before = {entry.name: entry for entry in refused}
    gone = before.keys() - set(files.names)
    level = find_level(where, files, gone)
    names = [files.names[number] for number in level.numbers]
    labels_then = {name: before[name].label for name in gone}
    labels = (
        Labels([0] * len(names), 0, [], [])
        if unlabelled
        else find_labels(where, files, level, expected, empty_classes, labels_then)
    )
    entries: list[tuple[Entry, int | None]] = []
    for name, label, number in zip(names, labels.labels, level.numbers, strict=True):
        entry = before.get(name)
        if entry is None or entry.label != label:
            entry = Entry(name, label, files.check(number))
        entries.append((entry, number))
    if gone:
        entries = sorted(entries + [(before[name], None) for name in gone])
    return FileSource(where, level, files, entries, labels)


class FileSource:
    """Samples in files of their own; see `open_source`.

    Args:
        entries: in the order of their names, each with its number in `files`; none if it is gone.
    """

    shuffled = False

    def __init__(
        self,
        where: str,
        level: Level,
        files: Files,
        entries: list[tuple[Entry, int | None]],
        labels: Labels,
    ):
        self.where, self.kind = where, level.kind
        self.num_classes, self.classes = labels.num_classes, labels.folders
        self.notes = level.notes + labels.notes
        self._files, self._entries = files, entries
        digest = hashlib.sha256()
        for entry, _ in entries:
            digest.update(os.fsencode(f"{entry.name}\0{entry.label}\0{entry.check}\n"))
        self.fingerprint = digest.hexdigest()
        self._clashing = self._names_of_one_key()

    def __len__(self) -> int:
        return len(self._entries)

    def part(self, numbers: np.ndarray) -> "FilePart":
        chosen = [self._entries[number] for number in numbers.tolist()]
        keys = [self._key(entry.name) for entry, _ in chosen]
        present = [number is not None for _, number in chosen]
        there = [number for _, number in chosen if number is not None]
        places = [self.where if n is None else self._files.place(n) for _, n in chosen]
        entries = [entry for entry, _ in chosen]
        return FilePart(places, self.kind, keys, entries, present, self._files.part(there))

    def _key(self, name: str) -> str:
        return hashed_key(name) if name in self._clashing else key_of(name)

    def _names_of_one_key(self) -> set[str]:
        """The names whose keys are those of others, such as `a.png` and `a.jpg`."""
        keys = [key_of(entry.name) for entry, _ in self._entries]
        times = Counter(keys)
        names = [e.name for (e, _), key in zip(self._entries, keys, strict=True) if times[key] > 1]
        if twice := first_repeated(names):
            raise SourceError(f"{self.where}: {twice} is there more than once; pack it again")
        return set(names)


@dataclass(frozen=True)
class FilePart:
    """Some samples of a FileSource."""

    places: list[str]  # the folder or archive that holds each
    kind: str
    keys: list[str]
    entries: list[Entry]
    present: list[bool]
    files: Part

    @contextmanager
    def open(self) -> Iterator[Iterator[Raw]]:
        with self.files.open() as reads:
            yield self._raws(iter(reads))

    def _raws(self, reads: Iterator[Callable[[], bytes]]) -> Iterator[Raw]:
        listed = zip(self.places, self.keys, self.entries, self.present, strict=True)
        for place, key, entry, present in listed:
            load = partial(_load, self.kind, next(reads)) if present else _gone
            yield Raw(key, entry, f"{place}: {entry.name}", load)


def _load(kind: str, read: Callable[[], bytes]) -> np.ndarray:
    content = read()
    try:
        return decode_latents(content) if kind == "latents" else decode_image(content)
    except ValueError as error:
        raise SourceError(str(error)) from error


def _gone() -> np.ndarray:
    raise GoneSample("it is not there any more")
