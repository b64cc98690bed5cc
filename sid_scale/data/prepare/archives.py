"""Files in archives, read by place: by any number of threads and processes at once, and compared
with the archive's own sizes and checksums.

Only the list is held, a few tens of bytes a member.
"""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from sid_scale.data.prepare.files import (
    MOST_BYTES,
    SourceError,
    is_hidden,
    is_labels,
    is_usable,
)

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and how long name and extra field are
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


# --- zip ----------------------------------------------------------------------------------


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
        self.folders: list[str] = []
        self.notes: list[str] = []
        members = array("q")
        with zipfile.ZipFile(path) as archive:
            for info in archive.filelist:
                if is_hidden(info.filename):
                    continue
                if info.is_dir():
                    self.folders.append(info.filename.rstrip("/"))
                    continue
                name = info.filename.removeprefix("./")
                if is_usable(name) or is_labels(name):  # others are not read
                    _check_member(path, info)
                self.names.append(name)
                members.extend((info.header_offset, info.compress_size, info.file_size))
                members.extend((info.CRC, info.compress_type))
        self.members = np.array(members).reshape(-1, len(Member._fields))

    def place(self, number: int) -> str:
        return str(self.path)

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


# --- tar ----------------------------------------------------------------------------------


class TarFiles:
    """A tar archive's files; those of tar archives in it are in folders of these archives' names,
    as ImageNet's classes are."""

    def __init__(self, path: Path):
        self.path = path
        self.names: list[str] = []
        self.folders: list[str] = []
        self.notes: list[str] = []
        spans = array("q")
        with open(path, "rb") as file:
            for name, offset, size in self._members(file, ""):
                self.names.append(name)
                spans.extend((offset, size))
        self._spans = np.array(spans).reshape(-1, 2)  # offset and size of each file

    def place(self, number: int) -> str:
        return str(self.path)

    def check(self, number: int) -> str:
        return str(self._spans[number, 1])

    def part(self, numbers: Sequence[int]) -> "TarPart":
        return TarPart(self.path, [(int(o), int(s)) for o, s in self._spans[list(numbers)]])

    def _members(self, file: IO[bytes], prefix: str) -> Iterator[tuple[str, int, int]]:
        """Name, offset in the outermost archive and size of each file."""
        inner: list[tuple[str, int, int]] = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would grow to gigabytes
                name = prefix + member.name.removeprefix("./")
                if is_hidden(name) or member.name == ".":
                    continue
                if member.isdir():
                    self.folders.append(name)
                elif name.lower().endswith(".tar") and member.isreg():
                    inner.append((name, member.offset_data, member.size))
                    self.folders.append(name[:-4])
                elif not (is_usable(name) or is_labels(name)):
                    yield name, member.offset_data, 0  # is not read
                elif member.issparse() or not member.isreg():
                    raise SourceError(
                        f"{self.path}: {name} is a link, or no plain file; pack files themselves"
                    )
                elif member.size > MOST_BYTES:
                    raise SourceError(f"{self.path}: {name} claims {member.size} bytes: no sample")
                else:
                    yield name, member.offset_data, member.size
        for name, begin, size in inner:
            if prefix:
                raise SourceError(f"{self.path}: {name} is an archive in an archive in an archive")
            window = cast(IO[bytes], Window(file, begin, size))
            for below, offset, length in self._members(window, f"{name[:-4]}/"):
                yield below, begin + offset, length


class Window(io.RawIOBase):
    """Some bytes of a file as a file, to be read."""

    def __init__(self, file: IO[bytes], begin: int, size: int):
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._begin + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


@dataclass(frozen=True)
class TarPart:
    """Some files of a tar archive."""

    path: Path
    spans: list[tuple[int, int]]  # offset and size of each file

    @contextmanager
    def open(self) -> Iterator[list[Callable[[], bytes]]]:
        with open(self.path, "rb", buffering=0) as file:
            yield [partial(_read_span, file.fileno(), *span) for span in self.spans]


def _read_span(descriptor: int, offset: int, size: int) -> bytes:
    try:
        content = os.pread(descriptor, size, offset)
    except OSError as error:
        raise SourceError(f"damaged ({error})") from error
    if len(content) != size:
        raise SourceError(f"damaged: the archive ends in it, after {len(content)} of {size} bytes")
    return content
