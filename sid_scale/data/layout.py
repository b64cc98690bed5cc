"""The layout that `write_shards` gives a tar file, read in place.

All samples of a data set have one shape and dtype, so each takes the same number of bytes:

    header of <key>.cls, class, header of <key>.npy, preamble of .npy   (the head)
    the array                                                           (the payload)
    zeros up to a multiple of 512

Where sample i lies is then known without reading what comes before, and one system call puts its
payload where it is wanted. Nothing is taken on trust: what was read is compared with the ustar
and .npy headers that belong there. Any other tar file is for `shards.read_shard`.
"""

import io
import os
import re
from typing import IO

import numpy as np

from sid_scale.data.shards import DTYPES, HEAD_BYTES, INDEX, Shard, ShardError, ShardIndex

TAR_BLOCK = 512
TAR_RECORD = 10240  # a tar file is padded to a multiple of this
# The header of a member (POSIX 1003.1, ustar), cut where its checks need it.
USTAR = np.dtype(
    {
        "names": ["name", "size", "checksum", "type", "magic", "prefix"],
        "formats": ["S100", "S12", "S8", "S1", "V8", "S155"],
        "offsets": [0, 124, 148, 156, 257, 345],
        "itemsize": TAR_BLOCK,
    }
)
OCTAL = re.compile(rb"[0-7]{6,11}[ \0]*")
CHECKSUM = slice(148, 156)
MAGIC = np.void(b"ustar\x0000")


class Layout:
    """Where samples of one shape and dtype lie in a shard, and how its heads must look."""

    def __init__(self, index: ShardIndex):
        preamble = io.BytesIO()
        dtype = DTYPES[index.dtype]
        header = {"descr": dtype.str, "fortran_order": False, "shape": index.sample_shape}
        np.lib.format.write_array_header_1_0(preamble, header)
        self.preamble = np.void(preamble.getvalue())
        self.num_classes = index.num_classes
        payload = int(np.prod(index.sample_shape)) * dtype.itemsize
        npy = len(preamble.getvalue()) + payload
        self.npy_size = b"%011o" % npy
        self.stride = 3 * TAR_BLOCK + -(-npy // TAR_BLOCK) * TAR_BLOCK
        self.head = np.dtype(
            [
                ("cls", USTAR),
                ("label", f"S{TAR_BLOCK}"),
                ("npy", USTAR),
                ("npy_head", f"V{npy - payload}"),
            ]
        )

        self._begin = {"cls": 0, "npy": 2 * TAR_BLOCK}  # of the tar headers in a head

    def file_bytes(self, samples: int) -> int:
        """Bytes of a shard of so many samples, with the two zero blocks at the end of a tar."""
        return -(-(samples * self.stride + 2 * TAR_BLOCK) // TAR_RECORD) * TAR_RECORD

    def labels(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes that heads, uint8 (n, head_bytes), tell, int64 (n,), and which heads are
        in order, bool (n,); the class of one that is not is -1."""
        fields = heads.view(self.head)[:, 0]
        cls, npy = fields["cls"], fields["npy"]
        sound = (npy["size"] == self.npy_size) & (fields["npy_head"] == self.preamble)
        for name, member in (("cls", cls), ("npy", npy)):
            sound &= (member["type"] == b"0") & (member["magic"] == MAGIC)
            sound &= (member["prefix"] == b"") & (
                self._sums(heads, name) == _octal(member["checksum"])
            )
        texts = fields["label"].tolist()
        labels = np.array([int(text) if _is_class(text) else -1 for text in texts], np.int64)
        sound &= _octal(cls["size"]) == [len(text) for text in texts]
        sound &= (labels >= 0) & (labels < self.num_classes)
        names = zip(cls["name"].tolist(), npy["name"].tolist(), strict=True)
        sound &= [_is_pair(first, second) for first, second in names]
        return np.where(sound, labels, -1), sound

    def _sums(self, heads: np.ndarray, member: str) -> np.ndarray:
        """Sum of the bytes of each one's tar header, the checksum's own counted as blanks."""
        begin = self._begin[member]
        header = heads[:, begin : begin + TAR_BLOCK]
        own = header[:, CHECKSUM].sum(axis=1, dtype=np.int64)
        return header.sum(axis=1, dtype=np.int64) - own + 8 * ord(" ")


class LaidOutShard:
    """An open shard of that layout; `close` it.

    Args:
        file: it, and nobody else reads from it.
        url: how messages name it.
    """

    def __init__(self, file: IO[bytes], layout: Layout, url: str):
        self._file, self._layout, self._url = file, layout, url
        self._descriptor = file.fileno()

    def expect(self, first: int, last: int) -> None:
        """Samples [first, last) will be asked for soon: lets the system read ahead."""
        stride = self._layout.stride
        if hasattr(os, "posix_fadvise"):
            begin, length = first * stride, (last - first) * stride
            os.posix_fadvise(self._descriptor, begin, length, os.POSIX_FADV_WILLNEED)

    def read_into(self, number: int, head: np.ndarray, payload: np.ndarray) -> None:
        """Sample `number`, unchecked: uint8 arrays of the head's size and the payload's.

        Raises:
            ShardError: the file ends too early or cannot be read.
        """
        place = number * self._layout.stride
        try:
            count = os.preadv(self._descriptor, [head.data, payload.data], place)
        except OSError as error:
            raise ShardError(f"{self._url}: cannot be read at sample {number}: {error}") from error
        if count != head.nbytes + payload.nbytes:
            raise ShardError(f"{self._url}: ends within sample {number}; fetch it again")

    def close(self) -> None:
        self._file.close()


def is_laid_out(file: IO[bytes], layout: Layout, shard: Shard, url: str) -> bool:
    """Whether an open local file has the layout, by its size and its end.

    Raises:
        ShardError: it is not the file that the index describes.
    """
    size = os.fstat(file.fileno()).st_size
    if size != shard.bytes:
        raise ShardError(f"{url}: {size} bytes, not {shard.bytes} as in {INDEX}; fetch it again")
    shard.check_head(url, os.pread(file.fileno(), HEAD_BYTES, 0))
    if size != layout.file_bytes(shard.samples):
        return False
    end = shard.samples * layout.stride
    return not any(os.pread(file.fileno(), size - end, end))


def _octal(fields: np.ndarray) -> list[int]:
    """Numbers of a tar header, which end in a zero or a blank; -1 for what is none."""
    return [
        int(text.rstrip(b"\0 "), 8) if OCTAL.fullmatch(text) else -1 for text in fields.tolist()
    ]


def _is_class(text: bytes) -> bool:
    return text.isdigit() and len(text) < 18


def _is_pair(cls: bytes, npy: bytes) -> bool:
    """Whether these are `<key>.cls` and `<key>.npy`."""
    return (
        cls.endswith(b".cls")
        and npy == cls[:-3] + b"npy"
        and b"." not in cls[:-4].rpartition(b"/")[2]
    )
