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
from typing import IO

import numpy as np

from sid_scale.data.shards import DTYPES, HEAD_BYTES, INDEX, Shard, ShardError, ShardIndex

TAR_BLOCK = 512
TAR_RECORD = 10240  # a tar file is padded to a multiple of this
# What of a member's header (POSIX 1003.1, ustar) is looked at; its checksum takes too long.
USTAR = np.dtype(
    {
        "names": ["name", "size", "type", "magic", "prefix"],
        "formats": ["S100", "S12", "S1", "V8", "S155"],
        "offsets": [0, 124, 156, 257, 345],
        "itemsize": TAR_BLOCK,
    }
)
MAGIC = np.void(b"ustar\x0000")
DIGITS = 16  # of a class, at most


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
                ("label", f"S{DIGITS}"),
                ("padding", f"V{TAR_BLOCK - DIGITS}"),
                ("npy", USTAR),
                ("preamble", f"V{npy - payload}"),
            ]
        )

    def file_bytes(self, samples: int) -> int:
        """Bytes of a shard of so many samples, with the two zero blocks at the end of a tar."""
        return -(-(samples * self.stride + 2 * TAR_BLOCK) // TAR_RECORD) * TAR_RECORD

    def labels(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes that heads, uint8 (n, head_bytes), tell, int64 (n,), and which heads are
        in order, bool (n,); the class of one that is not is -1."""
        fields = heads.view(self.head)[:, 0]
        cls, npy = fields["cls"], fields["npy"]
        sound = (npy["size"] == self.npy_size) & (fields["preamble"] == self.preamble)
        for member in (cls, npy):
            sound &= (member["type"] == b"0") & (member["magic"] == MAGIC)
            sound &= member["prefix"] == b""
        texts = fields["label"].tolist()
        labels = np.array([int(text) if text.isdigit() else -1 for text in texts], np.int64)
        sound &= (labels >= 0) & (labels < self.num_classes)
        sound &= cls["size"] == [b"%011o" % len(text) for text in texts]
        names = zip(cls["name"].tolist(), npy["name"].tolist(), strict=True)
        sound &= [npy == cls[:-3] + b"npy" and cls.endswith(b".cls") for cls, npy in names]
        return np.where(sound, labels, -1), sound


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
        begin, end = first * self._layout.stride, last * self._layout.stride
        try:  # a look at the end tells whether they are in memory, and costs less than asking
            os.preadv(self._descriptor, [bytearray(1)], end - 1, os.RWF_NOWAIT)
        except OSError:
            os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

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
