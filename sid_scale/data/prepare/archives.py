"""Files in archives, read by place: by any number of threads and processes at once, and compared
with the archive's own sizes and checksums.

Only the list is held, a few tens of bytes a member.
"""

import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sid_scale.data.prepare.files import MOST_BYTES, SourceError, is_hidden

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and how long name and extra field are
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


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
                if info.is_dir() or is_hidden(info.filename):
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
