"""Files by name, of which only the list is held: what every place offers, and folders."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sid_scale.data.prepare.images import SUFFIXES
from sid_scale.errors import SidScaleError

LATENT = ".npy"
LABELS = "dataset.json"  # EDM's
CLASS = ".cls"  # WebDataset's: a file beside each sample
MOST_NAMED = 5
MOST_BYTES = 1 << 28  # of one file: what claims more is no sample
# Folders of Synology's and QNAP's servers and of Windows; names with a dot come on top.
_JUNK = {
    "@eaDir",
    "@tmp",
    "#recycle",
    "#snapshot",
    "@Recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}


class SourceError(SidScaleError):
    """A source that shards cannot be made of; the message says where, why and what to do."""


class Part(Protocol):
    """Some of a place's files: small, and fit to be sent to another process."""

    def open(self) -> AbstractContextManager[list[Callable[[], bytes]]]:
        """Inside, each file can be read: by one function a file, which returns its bytes and
        raises `SourceError` if it is damaged."""


class Files(Protocol):
    """Files of a folder or an archive, in an order of its own."""

    names: list[str]
    folders: list[str]  # those that are known of besides: those without files, above all
    notes: list[str]  # what the user should know

    def place(self, number: int) -> str:
        """Path of the folder or archive that holds a file."""

    def part(self, numbers: Sequence[int]) -> Part:
        """The files with these numbers."""

    def check(self, number: int) -> str:
        """What is known of a file's contents without reading it."""


def is_usable(name: str) -> bool:
    """Whether a file is a sample, by its name."""
    return name.endswith(LATENT) or name.lower().endswith(SUFFIXES)


def is_labels(name: str) -> bool:
    """Whether a file says classes of samples, by its name."""
    return name.endswith(CLASS) or name.rpartition("/")[2] == LABELS


def name_some(names: Iterable[Any]) -> str:
    """The first names of many, or numbers, and how many there are."""
    ordered = sorted(names)
    dots = " ..." if len(ordered) > MOST_NAMED else ""
    return f"{', '.join(map(str, ordered[:MOST_NAMED]))}{dots} ({len(ordered)})"


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that is there more than once."""
    if len(set(names)) == len(names):
        return None
    times = Counter(names)
    return next(name for name in names if times[name] > 1)


def is_hidden(name: str) -> bool:
    """Whether a file belongs to an operating system or a file server, not to the data."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith((".", "__MACOSX")) or part in _JUNK for part in parts)


# --- folders ------------------------------------------------------------------------------


class FolderFiles:
    """A folder's files and those of the folders in it, through links, without hidden ones."""

    def __init__(self, root: Path):
        self.root = root
        self.names: list[str] = []
        self.folders: list[str] = []
        self.notes: list[str] = []
        self._list("", (os.path.realpath(root),))

    def _list(self, prefix: str, above: tuple[str, ...]) -> None:
        """Lists the folder `prefix`; `above` are the real paths of it and of those it lies in."""
        inside: list[tuple[str, str]] = []
        with os.scandir(self.root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    linked = entry.is_symlink()
                    real = os.path.realpath(entry.path) if linked else f"{above[-1]}/{entry.name}"
                    inside.append((name, real))
                elif entry.is_symlink() and not is_usable(name) and not os.path.exists(entry.path):
                    self.folders.append(name)  # a class that is not mounted, perhaps
                else:
                    self.names.append(name)
        for name, real in inside:
            if real in above:
                raise SourceError(f"{self.root / name} leads to a folder that holds it; remove it")
            self.folders.append(name)
            self._list(f"{name}/", (*above, real))

    def place(self, number: int) -> str:
        return str(self.root)

    def check(self, number: int) -> str:
        return ""  # a look at every file's size takes minutes on a cluster's disks

    def part(self, numbers: Sequence[int]) -> "FolderPart":
        return FolderPart(self.root, [self.names[number] for number in numbers])


@dataclass(frozen=True)
class FolderPart:
    """Some files of a folder."""

    root: Path
    names: list[str]

    @contextmanager
    def open(self) -> Iterator[list[Callable[[], bytes]]]:
        yield [partial(_read_file, self.root / name) for name in self.names]


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise SourceError(f"larger than {MOST_BYTES} bytes: no sample")
    return content
