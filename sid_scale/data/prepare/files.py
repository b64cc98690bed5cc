"""Files by name in a folder or a zip archive, of which only the list is held.

Of an archive that is its central directory, a few tens of bytes a member. Members are read by
place, by any number of threads and processes at once, and compared with the directory's size and
checksum.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from sid_scale.errors import SidScaleError

MOST_BYTES = 1 << 28  # of one file: what claims more is no sample
# Folders of Synology's and QNAP's servers and of Windows; names with a dot come on top.
_JUNK = {
    "@eaDir",
    "#recycle",
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
    folders: list[str]  # those that are known of, with files or without

    def part(self, numbers: Sequence[int]) -> Part:
        """The files with these numbers."""

    def check(self, number: int) -> str:
        """What is known of a file's contents without reading it."""


def is_hidden(name: str) -> bool:
    """Whether a file belongs to an operating system or a file server, not to the data."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith((".", "__MACOSX")) or part in _JUNK for part in parts)


# --- folders ------------------------------------------------------------------------------


class FolderFiles:
    """A folder's files and those of the folders in it, without hidden ones."""

    def __init__(self, root: Path):
        self.root = root
        self.names: list[str] = []
        self.folders: list[str] = []
        for folder, inside, files in os.walk(root, followlinks=True, onerror=_raise):
            inner = os.path.relpath(folder, root)
            prefix = "" if inner == "." else inner.replace(os.sep, "/") + "/"
            inside[:] = [name for name in inside if not is_hidden(name)]
            for name in inside:
                _refuse_loop(folder, name)
            self.folders += [prefix + name for name in inside]
            for name in files:
                # A link that leads nowhere may be a class folder that is not mounted.
                is_file = "." in name or os.path.exists(os.path.join(folder, name))
                (self.names if is_file else self.folders).append(prefix + name)
        self.names = [name for name in self.names if not is_hidden(name)]

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


def _refuse_loop(folder: str, name: str) -> None:
    path = os.path.join(folder, name)
    if os.path.islink(path):
        leads_to = os.path.realpath(path)
        if os.path.commonpath([leads_to, os.path.realpath(folder)]) == leads_to:
            raise SourceError(f"{path} is a link to a folder that holds it; remove the link")


def _raise(error: OSError) -> None:
    raise error
