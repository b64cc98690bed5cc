"""Latent shards: WebDataset tar files and the `index.json` that is the authority on them.

A sample is two neighbouring members of a tar file: `<key>.cls`, its class as an ASCII integer,
and `<key>.npy`, the codec's posterior (2C, H, W), mean then standard deviation. The index's
counts tell where every sample of an epoch lies without opening a shard.

Nothing in a shard is ever executed: WebDataset's own decoder, which knows pickle, is not used,
and other members are refused.
"""

import builtins
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import webdataset as wds
from webdataset import tariterators

from sid_scale.data.opening import ONCE, TIMEOUT, FetchError, Patience, local_path, open_url
from sid_scale.errors import SidScaleError
from sid_scale.files import written_whole

FORMAT_VERSION = 1
INDEX = "index.json"
HEAD_BYTES = 1 << 16
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
Sample = tuple[str, np.ndarray, int]
# WebDataset cuts a key at its first dot and skips `__names`; ustar has room for 100 characters.
_KEY = re.compile(r"(?!__)[A-Za-z0-9_/-]{1,90}")
# A plain file name: no folder, no `..`, no URL, no pipe that WebDataset would run.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ShardError(SidScaleError):
    """Shards that cannot be written or read; the message says what, where and what to do."""


class BadSampleError(ShardError):
    """One sample that is not what the index promises, in a shard that can be read."""


@dataclass(frozen=True)
class Shard:
    """One tar file as the index describes it.

    `head_sha256`, of the first HEAD_BYTES, tells whenever the shard is opened that it is this
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
        return cls(path.name, samples, path.stat().st_size, _sha256(path), head)

    def check_head(self, url: str, head: "builtins.bytes") -> None:
        """Compares the first HEAD_BYTES of what lies at `url` (all of it, if it has fewer).

        Raises:
            ShardError: this is another file than the index describes.
        """
        if self.head_sha256 and hashlib.sha256(head).hexdigest() != self.head_sha256:
            raise ShardError(f"{url}: not the shard that {INDEX} describes; fetch it again")


@dataclass(frozen=True)
class ShardIndex:
    """A data set as `index.json` describes it; `sample_shape` is (2C, H, W)."""

    sample_shape: tuple[int, ...]
    dtype: str
    num_classes: int
    class_histogram: tuple[int, ...]
    codec: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


class Record(NamedTuple):
    """A sample as its shard stores it, not yet decoded."""

    url: str
    key: str
    npy: bytes
    cls: bytes


def write_shards(
    folder: str | Path,
    samples: Iterable[Sample],
    *,
    codec: dict[str, Any],
    num_classes: int,
    shard_samples: int,
    dtype: str = "float32",
) -> ShardIndex:
    """Write samples, in the order given, as shards of `shard_samples` each (the last may hold
    fewer), then the index. The same samples give the same bytes.

    Args:
        samples: (key, stored, label) triples; the first one sets the shape (2C, H, W).
        codec: JSON description of the codec that made them (`Codec.describe`).

    Raises:
        ShardError: the folder already holds a data set, there are no samples, or one of them
            has a bad or repeated key, another shape, a non-finite value or a class out of range.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise ShardError(f"{folder} already holds a data set; remove it or choose another folder")
    if dtype not in DTYPES or shard_samples < 1:
        raise ShardError(f"{dtype!r} is not among {', '.join(DTYPES)}, or {shard_samples} < 1")
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        raise ShardError(f"{folder}: there are no samples to write")
    shape = np.shape(first[1])
    histogram = [0] * num_classes
    records = _encoded(chain([first], remaining), shape, DTYPES[dtype], histogram)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shard] = []
    for record in records:
        path = folder / f"shard-{len(shards):06d}.tar"
        count = _write_tar(path, chain([record], islice(records, shard_samples - 1)))
        shards.append(Shard.of(path, count))
    index = ShardIndex(shape, dtype, num_classes, tuple(histogram), codec, tuple(shards))
    write_index(folder, index)
    return index


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index.json`, whole or not at all; it comes last."""
    text = json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(index)}, indent=1)
    with written_whole(folder / INDEX) as partial:
        partial.write_text(text + "\n")


def read_index(
    folder: str | Path, patience: Patience = ONCE, timeout: float = TIMEOUT
) -> ShardIndex:
    """The index of a data set in a local folder, or in anything that WebDataset opens when
    `/index.json` is put behind it; that is tried with `patience`. Of local shards, presence and
    size are checked.

    Raises:
        ShardError: there is no index, it is damaged or of another version, or a local shard is
            missing or has another size than the index says.
    """
    where = f"{folder}/{INDEX}"
    local = local_path(folder)

    def read() -> bytes:
        with open_url(where, timeout) as stream:
            return stream.read()

    try:
        fields = json.loads(read() if local else patience.attempts(read, where))
        version = fields.pop("format_version")
        index = _parse(fields) if version == FORMAT_VERSION else None
    except (OSError, FetchError) as error:
        raise ShardError(
            f"{where}: no index can be read there ({error}); was writing cut short? It comes last"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(
            f"{where}: damaged ({type(error).__name__}: {error}); write the shards again"
        ) from error
    if index is None:
        raise ShardError(f"{where}: format version {version!r}; this is for {FORMAT_VERSION}")
    for path, shard in ((local / shard.name, shard) for shard in index.shards if local):
        if not path.is_file():
            raise ShardError(f"{path}: missing, but named in {INDEX}; fetch it again")
        if (size := path.stat().st_size) != shard.bytes:
            raise ShardError(f"{path}: {size} bytes, not {shard.bytes}; fetch it again")
    return index


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
    """A record's stored array, (2C, H, W) in the index's dtype, and its class.

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
    return array, _checked_label(array, label, index.sample_shape, index.num_classes, where)


def verify_shards(folder: str | Path) -> ShardIndex:
    """Read a local data set from end to end and compare everything with its index.

    Raises:
        ShardError: the first difference in checksum, count, shape, value, class or key.
    """
    index = read_index(folder)
    histogram = [0] * index.num_classes
    seen: set[str] = set()
    for shard in index.shards:
        path = Path(folder) / shard.name
        if _sha256(path) != shard.sha256:
            raise ShardError(f"{path}: another SHA-256 than in {INDEX}; fetch it again")
        for record in read_shard(folder, shard):
            if record.key in seen:
                raise ShardError(f"{record.url}: sample {record.key!r} is there a second time")
            seen.add(record.key)
            histogram[decode(record, index)[1]] += 1
    if tuple(histogram) != index.class_histogram:
        raise ShardError(f"{folder}/{INDEX}: class_histogram does not match the shards")
    return index


def _checked_label(
    array: np.ndarray, label: int, shape: tuple[int, ...], num_classes: int, where: str
) -> int:
    if array.shape != shape or array.ndim != 3 or array.shape[0] % 2:
        raise BadSampleError(f"{where}: shape {array.shape}; wanted (2C, H, W), here {shape}")
    if not np.isfinite(array).all():
        raise BadSampleError(f"{where}: NaN or infinity (as {array.dtype})")
    if int(label) != label or not 0 <= label < num_classes:
        raise BadSampleError(f"{where}: class {label} is not in 0..{num_classes - 1}")
    return int(label)


def _encoded(
    samples: Iterable[Sample], shape: tuple[int, ...], dtype: np.dtype[Any], histogram: list[int]
) -> Iterator[dict[str, Any]]:
    """Samples checked and ready for TarWriter, their classes counted into `histogram`."""
    keys: set[str] = set()
    for key, stored, label in samples:
        if not _KEY.fullmatch(key):
            raise ShardError(f"sample {key!r}: a key is up to 90 of A-Z a-z 0-9 _ - /")
        if key in keys:
            raise ShardError(f"sample {key!r}: this key was written before")
        with np.errstate(over="ignore"):  # an overflow is reported, by its key, just below
            array = np.ascontiguousarray(stored, dtype=dtype)
        label = _checked_label(array, label, shape, len(histogram), f"sample {key!r}")
        keys.add(key)
        histogram[label] += 1
        npy = io.BytesIO()
        np.save(npy, array, allow_pickle=False)
        yield {"__key__": key, "npy": npy.getvalue(), "cls": b"%d" % label}


def _parse(fields: dict[str, Any]) -> ShardIndex:
    shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
    shape = tuple(int(size) for size in fields.pop("sample_shape"))
    histogram = tuple(int(count) for count in fields.pop("class_histogram"))
    index = ShardIndex(sample_shape=shape, class_histogram=histogram, shards=shards, **fields)
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.name) or shard.samples < 1:
            raise ValueError(f"shard {shard.name!r} of {shard.samples} samples")
    if index.dtype not in DTYPES or len(shape) != 3 or min(shape) < 1 or shape[0] % 2:
        raise ValueError(f"samples of {index.dtype} {shape}")
    if len(histogram) != index.num_classes or sum(histogram) != index.samples or not shards:
        raise ValueError("shard counts, class_histogram and num_classes contradict each other")
    return index


def _members(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    # skip_meta=None: nothing is skipped on account of its name without being looked at.
    for member in tariterators.tar_file_iterator(stream, skip_meta=None):
        if not member["fname"].endswith((".npy", ".cls")):
            raise ShardError(f"{url}: refused member {member['fname']!r}: neither .npy nor .cls")
        yield {**member, "__url__": url}


def _write_tar(path: Path, records: Iterable[dict[str, Any]]) -> int:
    with open(f"{path}.tmp", "wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        count = sum(1 for record in records if tar.write(record))
    os.replace(f"{path}.tmp", path)
    return count


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
