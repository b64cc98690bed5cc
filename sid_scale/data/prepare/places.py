"""Opens what a source names: a folder, an archive, or several that hold one data set together."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from sid_scale.data.prepare.archives import TarFiles, ZipFiles
from sid_scale.data.prepare.files import (
    CLASS,
    LABELS,
    Files,
    FolderFiles,
    Part,
    SourceError,
    first_repeated,
    is_labels,
    is_usable,
    name_some,
)
from sid_scale.data.prepare.splits import splits_in

ARCHIVES = (".zip", ".tar")
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz begin

UNREADABLE = (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError)


class Place(NamedTuple):
    """One of several places of a source; `name` is its path there, without an archive's suffix."""

    name: str
    path: Path
    files: Files


def open_files(paths: Sequence[Path]) -> Files:
    """The files of a source: of one folder or archive, or of several.

    A folder that holds archives, and no samples beside them, stands for these archives. If several
    places hold nothing but images, all at their top, each is a class of its own name.

    Raises:
        SourceError: one of them is neither folder nor archive, or cannot be read, or two of them
            hold files of one name.
    """
    if len(paths) == 1:
        return _open(paths[0])
    return JoinedFiles([Place(_stem(path.resolve().name), path, _open(path)) for path in paths])


def describe(paths: Sequence[Path]) -> str:
    """A source's name in messages."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


def _open(path: Path) -> Files:
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_archive(path)
    except SourceError:
        raise
    except UNREADABLE as error:
        raise SourceError(f"{path}: cannot be read ({error}); is it whole?") from error
    raise SourceError(f"{path}: there is no such folder or archive")


def _open_archive(path: Path) -> Files:
    with open(path, "rb") as file:
        head = file.read(262)
    if head.startswith(COMPRESSED):
        raise SourceError(
            f"{path} is compressed as a whole, and its files cannot be read by their place; unpack "
            "it, or make a plain .tar of it"
        )
    is_tar = head[257:262] == b"ustar" or path.name.lower().endswith(".tar")
    return TarFiles(path) if is_tar else ZipFiles(path)


def _open_folder(path: Path) -> Files:
    """A folder's files, or those of the archives that it consists of."""
    folder = FolderFiles(path)
    archives = sorted(name for name in folder.names if name.lower().endswith(ARCHIVES))
    if any(map(is_usable, folder.names)):
        return folder
    if not archives:
        if packed := [name for name in folder.names if name.lower().endswith(PACKED)]:
            raise SourceError(
                f"{path} holds {name_some(packed)}, which cannot be read by place: unpack them"
            )
        return folder
    chosen, notes = _training_archives(path, archives)
    places = [Place(_stem(name), path / name, _open_archive(path / name)) for name in chosen]
    folder.names = [name for name in folder.names if name not in set(archives)]
    folder.folders = []  # those of the archives
    beside = [Place("", path, folder)] if LABELS in folder.names else []
    return JoinedFiles(places, beside, notes)


def _stem(name: str) -> str:
    return name[:-4] if name.lower().endswith(ARCHIVES) else name


def _training_archives(path: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """Of archives whose names tell their split those for training, and a note if some are not."""
    training, others = splits_in(names)
    if training and others:
        left_out = [name for name in names if name not in training]
        return training, [f"{path}: takes {name_some(training)}; leaves out {name_some(left_out)}"]
    if others and len(others) < len(names):
        raise SourceError(
            f"{path} holds {name_some(others)} beside {name_some(set(names) - set(others))}: is "
            "that for training? Name the archives that are meant, each behind --source"
        )
    return names, []


class JoinedFiles:
    """The files of several places, as if they lay in one.

    Args:
        beside: a place of labels for the others' files.
        notes: on which places were chosen.
    """

    def __init__(
        self, places: Sequence[Place], beside: Sequence[Place] = (), notes: Sequence[str] = ()
    ):
        prefixes, about = _prefixes(places, any(p.files.names for p in beside))
        names = name_some(place.name for place in places)
        self.notes = [*notes, *(note for place in places for note in place.files.notes)]
        self.notes.append(f"joined as one source: {names}{about}")
        self._places = [*places, *beside]
        self.names: list[str] = []
        self.folders: list[str] = []
        self._members: list[tuple[int, int]] = []  # of which place, and its number there
        seen: dict[str, int] = {}
        for number, place in enumerate(self._places):
            prefix = prefixes[number] if number < len(prefixes) else ""
            cut = len(_own_top(place))
            self.folders += [prefix + folder[cut:] for folder in place.files.folders]
            self.folders += [prefix.rstrip("/")] if prefix else []
            for member, name in enumerate(place.files.names):
                name = prefix + name[cut:]
                other = number if name.endswith(LABELS) else seen.setdefault(name, number)
                if other != number:
                    raise SourceError(
                        f"{self._places[other].path} and {place.path} both hold {name}: parts of "
                        "one data set hold different files; leave one out, or rename its folders"
                    )
                self.names.append(name)
                self._members.append((number, member))

    def place(self, number: int) -> str:
        place, member = self._members[number]
        return self._places[place].files.place(member)

    def check(self, number: int) -> str:
        place, member = self._members[number]
        return self._places[place].files.check(member)

    def part(self, numbers: Sequence[int]) -> "JoinedPart":
        members = (self._members[number] for number in numbers)
        return JoinedPart(
            [
                (self._places[place].files.part(inside), len(inside))
                for place, run in groupby(members, key=lambda member: member[0])
                for inside in [[member for _, member in run]]
            ]
        )


def _prefixes(places: Sequence[Place], labelled: bool) -> tuple[list[str], str]:
    """What goes before the names of each place's files, and what that means."""
    names = [name for place in places for name in place.files.names]
    own = [f"{place.name}/" for place in places]
    if labelled or any(name.rpartition("/")[2] == LABELS for name in names):
        return [""] * len(places), ""
    if any(name.endswith(CLASS) for name in names):
        return own, ""  # WebDataset's keys are unique in one tar only
    if len(places) == 1 or not all(map(_is_class, places)):
        return [""] * len(places), ""
    if twice := first_repeated(own):
        raise SourceError(
            f"two sources are called {twice.rstrip('/')}, and would be one class: rename one, or "
            "give the folder that holds the class folders"
        )
    return own, "; each is a class"


def _own_top(place: Place) -> str:
    """The folder of the place's own name that all its files lie in, or nothing."""
    top = f"{place.name.rpartition('/')[2]}/"
    names = place.files.names
    return top if names and all(name.startswith(top) for name in names) else ""


def _is_class(place: Place) -> bool:
    """Whether a place's files all lie at its top, and none is about another."""
    names = [name[len(_own_top(place)) :] for name in place.files.names]
    samples = {name.rpartition(".")[0] for name in names if is_usable(name)}
    others = {name.partition(".")[0] for name in names if not is_usable(name)}
    return not any("/" in name or is_labels(name) for name in names) and not samples & others


@dataclass(frozen=True)
class JoinedPart:
    """Some files of several places: parts in the order of the files, and how many each holds."""

    runs: list[tuple[Part, int]]

    @contextmanager
    def open(self) -> Iterator[list[Callable[[], bytes]]]:
        with ExitStack() as stack:
            runs = [stack.enter_context(_LazyPart(part, count)) for part, count in self.runs]
            yield [read for run in runs for read in run.reads]


class _LazyPart(ExitStack):
    """A part that is open from its first read to its last: a thousand archives at once would be
    more than a process may open."""

    def __init__(self, part: Part, count: int):
        super().__init__()
        self._part, self._left, self._lock = part, count, Lock()
        self._opened: list[Callable[[], bytes]] = []
        self.reads = [lambda number=number: self._read(number) for number in range(count)]

    def _read(self, number: int) -> bytes:
        with self._lock:
            if not self._opened:
                self._opened = self.enter_context(self._part.open())
            self._left -= 1
            try:
                return self._opened[number]()
            finally:
                if not self._left:
                    self.close()
                    self._opened = []
