"""Shards: WebDataset tar files and the `index.json` that is the authority on them.

A sample is two neighbouring members of a tar file: `<key>.cls`, its class as an ASCII integer,
and `<key>.npy`, what its codec stores: a posterior (2C, H, W), mean then standard deviation, in
floating point, or an image (C, H, W) in uint8. The index says which, in shape and dtype, and its
counts say where every sample of an epoch is, without opening a shard.

Nothing in a shard is ever executed: WebDataset's own decoder, which knows pickle, is not used,
and other members are refused.
"""

import builtins
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from webdataset import tariterators

from sid_scale.atomic import atomic_write
from sid_scale.data.remote import ONCE, TIMEOUT, FetchError, RetryPolicy, local_path, open_url
from sid_scale.errors import SidScaleError
from sid_scale.hashing import sha256_file

FORMAT_VERSION = 1
INDEX = "index.json"
HEAD_BYTES = 1 << 16
PIXELS = "uint8"
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    PIXELS: np.dtype("|u1"),
}
# A plain file name: no folder, no `..`, no URL, no pipe that WebDataset would run.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ShardError(SidScaleError):
    """Shards that cannot be written or read; the message says what, where and what to do."""


class BadSampleError(ShardError):
    """One sample that is not what the index promises, in a shard that can be read."""


@dataclass(frozen=True)
class Shard:
    """One tar file as the index describes it.

    `head_sha256`, of the first HEAD_BYTES, shows whenever the shard is opened that it is this
    one; the whole `sha256` takes too long for that. An index may lack it.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    head_sha256: str = ""

    @classmethod
    def of(cls, path: Path, samples: int) -> "Shard":
        """What the index says of a finished tar file that holds so many samples."""
        with open(path, "rb") as file:
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
        return cls(path.name, samples, path.stat().st_size, sha256_file(path), head)

    def check_head(self, url: str, head: "builtins.bytes") -> None:
        """Compares the first HEAD_BYTES of what is at `url` (all of it, if it has fewer).

        Raises:
            ShardError: this is another file than the index describes.
        """
        if self.head_sha256 and hashlib.sha256(head).hexdigest() != self.head_sha256:
            raise ShardError(f"{url}: not the shard that {INDEX} describes; fetch it again")


@dataclass(frozen=True)
class ShardIndex:
    """A data set as `index.json` describes it; `sample_shape` is what its codec stores."""

    sample_shape: tuple[int, ...]
    dtype: str
    num_classes: int
    class_histogram: tuple[int, ...]
    codec: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def __str__(self) -> str:
        """What its samples are, for messages."""
        classes = f"of {self.num_classes} classes" if self.num_classes else "without classes"
        return f"{self.dtype} {self.sample_shape} {classes}, codec {self.codec.get('kind')}"


class Record(NamedTuple):
    """A sample as its shard stores it, not yet decoded."""

    url: str
    key: str
    npy: bytes
    cls: bytes


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index.json`, whole or not at all; it comes last."""
    text = json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(index)}, indent=1)
    with atomic_write(folder / INDEX) as partial:
        partial.write_text(text + "\n")


def read_index(
    folder: str | Path, patience: RetryPolicy = ONCE, timeout: float = TIMEOUT
) -> ShardIndex:
    """`load_index`; of local shards, presence and size are checked.

    Raises:
        ShardError: there is no sound index, or a local shard is missing or has another size.
    """
    index, local = load_index(folder, patience, timeout), local_path(folder)
    for path, shard in ((local / shard.name, shard) for shard in index.shards if local):
        if not path.is_file():
            raise ShardError(f"{path}: missing, but named in {INDEX}; fetch it again")
        if (size := path.stat().st_size) != shard.bytes:
            raise ShardError(f"{path}: {size} bytes, not {shard.bytes}; fetch it again")
    return index


def load_index(
    folder: str | Path, patience: RetryPolicy = ONCE, timeout: float = TIMEOUT
) -> ShardIndex:
    """The index of a data set in a local folder, or in anything that WebDataset opens when
    `/index.json` is put behind it; that is tried with `patience`.

    Raises:
        ShardError: there is no index, or it is damaged or of another version.
    """
    where = f"{folder}/{INDEX}"
    local = local_path(folder)

    def read() -> bytes:
        with open_url(where, timeout) as stream:
            return stream.read()

    try:
        text = read() if local else patience.attempts(read, where)
    except FileNotFoundError as error:
        there = local is not None and local.is_dir()
        why = "was writing cut short? It comes last" if there else "there is no such folder"
        raise ShardError(f"{where}: no index can be read there; {why}") from error
    except (OSError, FetchError) as error:
        raise ShardError(f"{where}: no index can be read there: {error}") from error
    return _parse_index(text, where)


def read_shard(
    folder: str | Path,
    shard: Shard,
    first: int = 0,
    opened: Callable[[str], IO[bytes]] = open_url,
) -> Generator[Record, None, None]:
    """The records of a shard in stored order, from number `first` on, undecoded.

    `opened` opens a URL; what it returns is closed at the end.

    Raises:
        ShardError: the shard cannot be read to its end, holds another number of samples than
            the index says, or a member that has no place in it.
    """
    url = f"{folder}/{shard.name}"
    count = 0
    try:
        with opened(url) as stream:
            records = tariterators.group_by_keys(_members(_Rest(stream, url, shard), url))
            for record in records:
                count += 1
                # Looked ahead, so that a reader that stops after the last sample learns it too.
                if count == shard.samples and next(records, None) is not None:
                    raise ShardError(f"{url}: more samples than the {shard.samples} in {INDEX}")
                if record.keys() != {"__key__", "__url__", "npy", "cls"}:
                    raise ShardError(f"{url}: sample {record['__key__']!r} lacks .npy or .cls")
                if count > first:
                    yield Record(url, record["__key__"], record["npy"], record["cls"])
    except ShardError:
        raise
    except Exception as error:  # whatever a damaged file provokes in tarfile or WebDataset
        raise ShardError(
            f"{url}: cannot be read past sample {count} of {shard.samples} "
            f"({type(error).__name__}: {error.args[0] if error.args else ''}); fetch it again"
        ) from error
    if count != shard.samples:
        raise ShardError(f"{url}: ends after {count} of {shard.samples} samples; fetch it again")


class _Rest:
    """A shard's bytes from a stream whose first ones have been compared with the index."""

    def __init__(self, stream: IO[bytes], url: str, shard: Shard):
        self._stream, self._head = stream, stream.read(HEAD_BYTES)
        shard.check_head(url, self._head)

    def read(self, size: int) -> bytes:
        part, self._head = self._head[:size], self._head[size:]
        return part + self._stream.read(size - len(part)) if len(part) < size else part


def decode(record: Record, index: ShardIndex) -> tuple[np.ndarray, int]:
    """A record's stored array, of the index's shape and dtype, and its class.

    Raises:
        BadSampleError: it is not what the index promises; the message names shard and key.
    """
    where = f"{record.url}: sample {record.key!r}"
    try:
        # The header first: `np.load` allocates whatever size a hostile one claims.
        npy = io.BytesIO(record.npy)
        if np.lib.format.read_magic(npy) != (1, 0):
            raise ValueError("not a version 1.0 .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(npy)
        if shape != index.sample_shape or dtype != DTYPES[index.dtype]:
            raise ValueError(f"{dtype} {shape}, not {index.dtype} {index.sample_shape}")
        array = np.load(io.BytesIO(record.npy), allow_pickle=False)
        label = int(record.cls)
    except (ValueError, EOFError, OSError) as error:
        raise BadSampleError(f"{where}: {error}") from error
    return array, checked_label(array, label, index.sample_shape, index.num_classes, where)


def checked_label(
    array: np.ndarray, label: int, shape: tuple[int, ...], num_classes: int, where: str
) -> int:
    """The label, if sample and label are sound.

    Raises:
        BadSampleError: another shape, a non-finite value or a class out of range.
    """
    if array.shape != shape or not is_storable(shape, array.dtype.name):
        raise BadSampleError(f"{where}: shape {array.shape}; {_wanted(array.dtype.name, shape)}")
    if not np.isfinite(array).all():
        raise BadSampleError(f"{where}: NaN or infinity (as {array.dtype})")
    last = max(0, num_classes - 1)  # a sample without a class is stored as class 0
    if int(label) != label or not 0 <= label <= last:
        raise BadSampleError(f"{where}: class {label} is not in 0..{last}")
    return int(label)


def is_storable(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a sample can have this shape: an image (C, H, W), or a posterior (2C, H, W)."""
    return len(shape) == 3 and min(shape) >= 1 and (dtype == PIXELS or shape[0] % 2 == 0)


def _wanted(dtype: str, shape: tuple[int, ...]) -> str:
    if dtype == PIXELS:
        return f"all images have one size, here {shape}: --resolution R crops them to R x R"
    return f"wanted (2C, H, W), here {shape}"


def _parse_index(text: bytes, where: str) -> ShardIndex:
    """The index that a text holds.

    Raises:
        ShardError: it is damaged or of another version.
    """
    try:
        fields = json.loads(text)
        if (version := fields.pop("format_version")) == FORMAT_VERSION:
            return _parse(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(
            f"{where}: damaged ({type(error).__name__}: {error}); write the shards again"
        ) from error
    raise ShardError(f"{where}: format version {version!r}; this is for {FORMAT_VERSION}")


def _parse(fields: dict[str, Any]) -> ShardIndex:
    shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
    shape = tuple(int(size) for size in fields.pop("sample_shape"))
    histogram = tuple(int(count) for count in fields.pop("class_histogram"))
    index = ShardIndex(sample_shape=shape, class_histogram=histogram, shards=shards, **fields)
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.name) or shard.samples < 1:
            raise ValueError(f"shard {shard.name!r} of {shard.samples} samples")
    if index.dtype not in DTYPES or not is_storable(shape, index.dtype):
        raise ValueError(f"samples of {index.dtype} {shape}")
    counted = index.samples if index.num_classes else 0
    if len(histogram) != index.num_classes or sum(histogram) != counted or not shards:
        raise ValueError("shard counts, class_histogram and num_classes contradict each other")
    return index


def _members(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    # skip_meta=None: nothing is skipped on account of its name without being looked at.
    for member in tariterators.tar_file_iterator(stream, skip_meta=None):
        if not member["fname"].endswith((".npy", ".cls")):
            raise ShardError(f"{url}: refused member {member['fname']!r}: neither .npy nor .cls")
        yield {**member, "__url__": url}
