"""Opens what a source names: a folder, an archive, or several that hold one data set together."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sid_scale.data.prepare.archives import TarFiles, ZipFiles
from sid_scale.data.prepare.files import Files, FolderFiles, Part, SourceError
from sid_scale.data.prepare.folder_levels import CLASS, LABELS, is_usable

ARCHIVES = (".zip", ".tar")
GZIP = b"\x1f\x8b"


def open_files(paths: Sequence[Path]) -> Files:
    """The files of a source: of one folder or archive, or of several.

    A folder that holds archives, and no samples beside them, stands for these archives. An archive
    of images alone, all at its top, is a class if it is one of several; its name is the class's.

    Raises:
        SourceError: one of them is neither folder nor archive, or cannot be read, or two of them
            hold files of one name.
    """
    places = [(path.name, _open(path)) for path in paths]
    if len(places) == 1:
        [(_, files)] = places
        inside = _archives_in(files)
        if not inside:
            return files
        places = [(name, _open(paths[0] / name)) for name in inside]
    return JoinedFiles(places)


def describe(paths: Sequence[Path]) -> str:
    """A source's name in messages."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


def _open(path: Path) -> Files:
    try:
        if path.is_dir():
            return FolderFiles(path)
        if path.is_file():
            return _open_archive(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read ({error}); is it whole?") from error
    except tarfile.TarError as error:
        raise SourceError(f"{path}: cannot be read ({error}); is it whole?") from error
    raise SourceError(f"{path}: there is no such folder or archive")


def _open_archive(path: Path) -> Files:
    with open(path, "rb") as file:
        head = file.read(262)
    if head.startswith(GZIP):
        raise SourceError(
            f"{path} is compressed as a whole, and its files cannot be read by their place; unpack "
            "it, or make a .tar of it with gunzip"
        )
    return TarFiles(path) if head[257:262] == b"ustar" else ZipFiles(path)


def _archives_in(files: Files) -> list[str]:
    """Names of the archives that a folder consists of, if it does."""
    if not isinstance(files, FolderFiles) or any(map(is_usable, files.names)):
        return []
    return sorted(name for name in files.names if name.lower().endswith(ARCHIVES))


class JoinedFiles:
    """The files of several places, as if they lay in one."""

    def __init__(self, places: Sequence[tuple[str, Files]]):
        self._places = [files for _, files in places]
        prefixes = _class_prefixes(places)
        self.names: list[str] = []
        self.folders: list[str] = []
        self._members: list[tuple[int, int]] = []  # of which place, and its number there
        seen: dict[str, int] = {}
        for number, ((_, files), prefix) in enumerate(zip(places, prefixes, strict=True)):
            self.folders += [prefix + folder for folder in files.folders]
            for member, name in enumerate(files.names):
                name = prefix + name
                other = number if name.endswith(LABELS) else seen.setdefault(name, number)
                if other != number:
                    raise SourceError(
                        f"{places[other][0]} and {places[number][0]} both hold {name}: parts of "
                        "one data set hold different files; leave one out, or rename its folders"
                    )
                self.names.append(name)
                self._members.append((number, member))

    def check(self, number: int) -> str:
        place, member = self._members[number]
        return self._places[place].check(member)

    def part(self, numbers: Sequence[int]) -> "JoinedPart":
        members = [self._members[number] for number in numbers]
        by_place = {
            place: self._places[place].part([m for p, m in members if p == place])
            for place in dict.fromkeys(place for place, _ in members)
        }
        return JoinedPart(by_place, [place for place, _ in members])


def _class_prefixes(places: Sequence[tuple[str, Files]]) -> list[str]:
    """What goes before the names of each place: its own name, if places are classes."""
    names = [name for _, files in places for name in files.names]
    if any(name.endswith((LABELS, CLASS)) for name in names):
        return [""] * len(places)
    flat = [not any("/" in name for name in files.names) for _, files in places]
    stems = [place.removesuffix(".tar").removesuffix(".zip") for place, _ in places]
    return [f"{stem}/" if alone else "" for stem, alone in zip(stems, flat, strict=True)]


@dataclass(frozen=True)
class JoinedPart:
    """Some files of several places."""

    parts: dict[int, Part]  # by place, in the order of the files
    places: list[int]  # where each file is

    @contextmanager
    def open(self) -> Iterator[list[Callable[[], bytes]]]:
        with ExitStack() as stack:
            reads = {place: iter(stack.enter_context(p.open())) for place, p in self.parts.items()}
            yield [next(reads[place]) for place in self.places]
