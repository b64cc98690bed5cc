"""Files by name in a folder or a zip archive, of which only the list is held.

Of an archive that is its central directory, a few tens of bytes a member. Members are read by
place, by any number of threads and processes at once, and compared with the directory's size and
checksum.
"""

import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sid_scale.errors import SidScaleError

MOST_BYTES = 1 << 28  # of one file: what claims more is no sample
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and how long name and extra field are
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


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


def open_files(path: Path) -> "FolderFiles | ZipFiles":
    """The files in a folder or a zip archive.

    Raises:
        SourceError: it is neither, or cannot be read.
    """
    try:
        if path.is_dir():
            return FolderFiles(path)
        if path.is_file():
            return ZipFiles(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read ({error}); is it whole?") from error
    raise SourceError(f"{path}: there is no such folder or archive")


def _is_hidden(name: str) -> bool:
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
        self.names = [name for name in self.names if not _is_hidden(name)]

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


# --- zip archives -------------------------------------------------------------------------


class Member(NamedTuple):
    """The place of a zip's member, and what must come out."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int


class ZipFiles:
    """A zip archive's members, stored or deflated, without folders and hidden files."""

    def __init__(self, path: Path):
        self.path = path
        self.names: list[str] = []
        members = array("q")
        with zipfile.ZipFile(path) as archive:
            for info in archive.filelist:
                if info.is_dir() or _is_hidden(info.filename):
                    continue
                _check_member(path, info)
                self.names.append(info.filename)
                members.extend((info.header_offset, info.compress_size, info.file_size))
                members.extend((info.CRC, info.compress_type))
        self.members = np.array(members).reshape(-1, len(Member._fields))

    def check(self, number: int) -> str:
        _, _, size, crc, _ = self.members[number].tolist()
        return f"{size} {crc:08x}"

    def part(self, numbers: Sequence[int]) -> "ZipPart":
        return ZipPart(self.path, [Member(*self.members[number].tolist()) for number in numbers])


@dataclass(frozen=True)
class ZipPart:
    """Some members of an archive."""

    path: Path
    members: list[Member]

    @contextmanager
    def open(self) -> Iterator[list[Callable[[], bytes]]]:
        with open(self.path, "rb", buffering=0) as file:
            yield [partial(_read_member, file.fileno(), member) for member in self.members]


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    where = f"{path}: {info.filename}"
    if info.flag_bits & 1:
        raise SourceError(f"{where} is encrypted; make an archive without a password")
    if info.compress_type not in _METHODS:
        raise SourceError(
            f"{where} is compressed by method {info.compress_type}; pack it again, "
            f"{' or '.join(_METHODS.values())}"
        )
    if info.file_size > MOST_BYTES or info.compress_size > MOST_BYTES:
        raise SourceError(f"{where} claims {info.file_size} bytes: no sample")


def _read_member(descriptor: int, member: Member) -> bytes:
    # pread: no position in the file that threads could take from each other.
    try:
        header = os.pread(descriptor, _LOCAL_HEADER.size, member.offset)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            raise SourceError("damaged: its place in the archive holds no member")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        begin = member.offset + _LOCAL_HEADER.size + name + extra
        content = os.pread(descriptor, member.packed, begin)
        if member.method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
    except (OSError, zlib.error) as error:
        raise SourceError(f"damaged ({error})") from error
    if len(content) != member.size:
        raise SourceError(f"damaged: {len(content)} bytes, not {member.size}")
    if zlib.crc32(content) != member.crc:
        raise SourceError("damaged: another checksum than the archive's directory has")
    return content
