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

    def part(self, numbers: Sequence[int]) -> Part:
        """The files with these numbers."""

    def check(self, number: int) -> str:
        """What is known of a file's contents without reading it."""


def is_hidden(name: str) -> bool:
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith((".", "__MACOSX")) for part in parts)


# --- folders ------------------------------------------------------------------------------


class FolderFiles:
    """A folder's files and those of the folders in it, without hidden ones."""

    def __init__(self, root: Path):
        self.root = root
        self.names: list[str] = []
        for folder, _, files in os.walk(root, followlinks=True, onerror=_raise):
            inner = os.path.relpath(folder, root)
            prefix = "" if inner == "." else inner.replace(os.sep, "/") + "/"
            self.names += [prefix + file for file in files]
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


def _raise(error: OSError) -> None:
    raise error
