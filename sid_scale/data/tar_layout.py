"""The layout that `write_shards` gives a tar file, read in place.

All samples of a data set have one shape and dtype, so each takes the same number of bytes:

    header of <key>.cls, class, header of <key>.npy, preamble of .npy   (the head)
    the array                                                           (the payload)
    zeros up to a multiple of 512

The place of sample i is then known without reading what comes before, and one system call puts its
payload where it is wanted. Nothing is taken on trust: what was read is compared with the ustar
and .npy headers that belong there. Any other tar file is for `shards.read_shard`.
"""

import io
import math
import os
from itertools import repeat
from typing import IO, NamedTuple

import numpy as np

from sid_scale.data.shards import DTYPES, HEAD_BYTES, INDEX, Shard, ShardError, ShardIndex

TAR_BLOCK = 512
TAR_RECORD = 10240  # a tar file is padded to a multiple of this
# Fields of a member's header (POSIX 1003.1, ustar). Its checksum would take too long.
SIZE = 124
FIXED = {156: b"0", 257: b"ustar\x0000", 345: b"\0"}  # a plain file, by its short name
# What differs from sample to sample, and where: text, with zeros behind it.
FIELDS = {"cls": ("S100", 0), "size": ("S12", SIZE), "class": ("S16", 512), "npy": ("S100", 1024)}


def npy_preamble(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What stands before an array in its .npy file."""
    preamble = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(preamble, header)
    return preamble.getvalue()


def sample_stride(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes from one sample of a shard to the next."""
    npy = len(npy_preamble(shape, dtype)) + math.prod(shape) * dtype.itemsize
    return 3 * TAR_BLOCK + -(-npy // TAR_BLOCK) * TAR_BLOCK


class Heads(NamedTuple):
    """The heads of n samples, as they were read, and two views of them."""

    bytes: np.ndarray  # uint8 (n, head_bytes)
    words: np.ndarray  # uint64 (n, head_bytes / 8)
    fields: np.ndarray  # (n,), FIELDS


class Layout:
    """Where samples of one shape and dtype are in a shard, and how its heads must look."""

    def __init__(self, index: ShardIndex):
        dtype = DTYPES[index.dtype]
        preamble = npy_preamble(index.sample_shape, dtype)
        # The class for what a header says of its member's size and what the member holds.
        digits = [b"%d" % label for label in range(max(1, index.num_classes))]
        self._classes = {(b"%011o" % len(text), text): int(text) for text in digits}
        npy = len(preamble) + math.prod(index.sample_shape) * dtype.itemsize
        self.head_bytes = 3 * TAR_BLOCK + len(preamble)
        self.record_bytes = 3 * TAR_BLOCK + npy  # of a sample, without the zeros behind it
        self.stride = sample_stride(index.sample_shape, dtype)
        same = {base + at: text for base in (0, 2 * TAR_BLOCK) for at, text in FIXED.items()}
        same[2 * TAR_BLOCK + SIZE] = b"%011o\0" % npy
        same[3 * TAR_BLOCK] = preamble
        # What is the same in all heads, and where; as words, for speed.
        wanted, fixed = np.zeros((2, self.head_bytes), np.uint8)
        for at, text in same.items():
            wanted[at : at + len(text)], fixed[at : at + len(text)] = list(text), 0xFF
        wanted, fixed = wanted.view(np.uint64), fixed.view(np.uint64)
        self._where = np.flatnonzero(fixed)
        self._wanted, self._fixed = wanted[self._where], fixed[self._where]
        self._fields = np.dtype(
            {
                "names": list(FIELDS),
                "formats": [form for form, _ in FIELDS.values()],
                "offsets": [offset for _, offset in FIELDS.values()],
                "itemsize": self.head_bytes,
            }
        )

    def file_bytes(self, samples: int) -> int:
        """Bytes of a shard of so many samples, with the two zero blocks at the end of a tar."""
        return -(-(samples * self.stride + 2 * TAR_BLOCK) // TAR_RECORD) * TAR_RECORD

    def heads(self, samples: int) -> Heads:
        """Where to read so many heads to."""
        heads = np.zeros((samples, self.head_bytes), np.uint8)
        return Heads(heads, heads.view(np.uint64), heads.view(self._fields)[:, 0])

    def labels(self, heads: Heads) -> np.ndarray:
        """The classes in heads, int64 (n,); -1: the head is not in order."""
        labels = np.array(
            [
                # Both members have the key's name, which is not empty and ends where zeros begin.
                self._classes.get((size, digits), -1)
                if cls == npy[:-3] + b"cls" and npy[-4:] == b".npy" != npy and 0 not in npy
                else -1
                for cls, size, digits, npy in heads.fields.tolist()
            ]
        )
        differing = (heads.words.take(self._where, axis=1) ^ self._wanted) & self._fixed
        if differing.any():
            labels[differing.any(axis=1)] = -1
        return labels


class RandomAccessShard:
    """An open shard of that layout; `close` it.

    Args:
        file: it; no other reader uses it.
        url: how messages name it.
    """

    def __init__(self, file: IO[bytes], layout: Layout, url: str):
        self._file, self._layout, self._url = file, layout, url
        self._descriptor = file.fileno()

    def expect(self, first: int, last: int) -> None:
        """Samples [first, last) will be asked for soon: lets the system read ahead."""
        begin, end = first * self._layout.stride, last * self._layout.stride
        try:  # a read at the end shows whether they are in memory, and costs less than asking
            os.preadv(self._descriptor, [bytearray(1)], end - 1, os.RWF_NOWAIT)
        except OSError:
            os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def read_into(self, numbers: list[int], buffers: list[list[memoryview]]) -> None:
        """Samples, unchecked, each into a buffer of the head's size and one of the payload's.

        Raises:
            ShardError: the file ends too early or cannot be read.
        """
        offsets = [number * self._layout.stride for number in numbers]
        counts: list[int] = []
        try:
            counts.extend(map(os.preadv, repeat(self._descriptor), buffers, offsets))
        except OSError as error:  # what was read before it is in the list
            where = f"{self._url}: sample {numbers[len(counts)]}"
            raise ShardError(f"{where}: {error.strerror}") from error
        wanted = self._layout.record_bytes
        if counts.count(wanted) != len(numbers):
            first = next(n for n, count in zip(numbers, counts, strict=True) if count != wanted)
            raise ShardError(f"{self._url}: ends within sample {first}; fetch it again")

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
    return os.pread(file.fileno(), size - end, end) == bytes(size - end)
