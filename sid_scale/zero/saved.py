"""A checkpoint on disk, read without DeepSpeed, ranks or a GPU.

    000000016384/                           named after the images seen
      generator-ema-00003-of-00008.safetensors    one file a role, kind and rank
      generator-buffers.safetensors               what is not trained
      state.json                                  counters, settings, versions
      manifest.json                               written last: size and SHA-256 of all files

A file holds slices: its tensor `NAME@START` is a piece of the parameter NAME, flattened,
that begins at element START. A reader looks up the slices that cover what it needs, so the
number of ranks and the ZeRO stage that wrote them do not matter. Safetensors and JSON:
nothing here can carry code.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.hashing import sha256_file

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
STATE = "state.json"
BUFFERS = "buffers"


class TrainingStateError(SidScaleError):
    """A checkpoint that cannot be written or used; the message says which and why."""


class DamagedError(TrainingStateError):
    """A checkpoint whose files are not as they were written."""


def rank_file(role: str, kind: str, rank: int, world_size: int) -> str:
    """Name of one rank's part."""
    return f"{role}-{kind}-{rank:05d}-of-{world_size:05d}.safetensors"


def buffers_file(role: str) -> str:
    """Name of the file with a network's buffers."""
    return f"{role}-{BUFFERS}.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of."""

    folder: Path
    files: dict[str, dict[str, Any]]  # name -> {"bytes", "sha256"}

    def of(self, role: str, kind: str) -> list[str]:
        """The files of one role and kind, in the order of the ranks."""
        parts = re.compile(re.escape(f"{role}-{kind}") + r"(-\d+-of-\d+)?\.safetensors")
        return sorted(name for name in self.files if parts.fullmatch(name))

    def faults(self, names: Iterable[str]) -> list[str]:
        """What is wrong with these files: missing, of another size, of another content."""
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            found = pool.map(self._fault, names)
        return [fault for fault in found if fault is not None]

    def _fault(self, name: str) -> str | None:
        path, entry = self.folder / name, self.files[name]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{name}{_whose(name)} has {size:,} bytes instead of {entry['bytes']:,}"
            if sha256_file(path) != entry["sha256"]:
                return f"{name}{_whose(name)} has another checksum than when it was written"
        except FileNotFoundError:
            return f"{name}{_whose(name)} is missing"
        except OSError as error:  # the file may be sound: no reason to give it up
            raise TrainingStateError(f"checkpoint {self.folder}: {name}: {error}") from error
        return None


def _whose(name: str) -> str:
    part = re.search(r"-(\d+)-of-(\d+)\.safetensors$", name)
    return f" (of rank {int(part[1])} of {int(part[2])})" if part else ""


def are_files(entries: Mapping[str, Any]) -> bool:
    """Whether these are files of one folder by their plain names, each with size and SHA-256."""
    return all(
        re.fullmatch(r"\w[\w.-]*", name)
        and isinstance(entry["bytes"], int)
        and isinstance(entry["sha256"], str)
        for name, entry in entries.items()
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: there is none, or it is not one.
        TrainingStateError: it is of another version, or cannot be read.
    """
    try:
        stored = json.loads((folder / MANIFEST).read_text())
        version, files = stored["format_version"], stored["files"]
        sound = STATE in files and are_files(files)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(
            f"{folder} is no checkpoint: it has no {MANIFEST}. Name a folder such as "
            "RUN/checkpoints/000000016384, or RUN/checkpoints/latest"
        ) from error
    except OSError as error:
        raise TrainingStateError(f"checkpoint {folder}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"checkpoint {folder}: {MANIFEST} is damaged ({error})") from error
    if version != FORMAT_VERSION:
        raise TrainingStateError(
            f"checkpoint {folder} has format version {version}; this program reads "
            f"{FORMAT_VERSION}; resume with the release that wrote it"
        )
    if not sound:
        raise DamagedError(f"checkpoint {folder}: {MANIFEST} is damaged (odd entries)")
    return Manifest(folder, files)


def read_state(folder: Path) -> dict[str, Any]:
    """Counters and settings of a checkpoint.

    Raises:
        DamagedError: missing or damaged.
    """
    try:
        return dict(json.loads((folder / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"checkpoint {folder}: {STATE} is damaged ({error})") from error


class Slices:
    """The tensors of some files, found by parameter. Files are memory-mapped while open."""

    def __init__(self, folder: Path, files: Iterable[str]):
        self._folder = folder
        # parameter -> (first element, number of them, file, key)
        self._places: dict[str, list[tuple[int, int, str, str]]] = {}
        self._open: dict[str, Any] = {}
        self._mapped = ExitStack()
        for name in files:
            for key, numel in self._lengths(name):
                parameter, _, start = key.rpartition("@")
                place = (int(start), numel, name, key)
                self._places.setdefault(parameter, []).append(place)

    def parameters(self) -> set[str]:
        """Names of all parameters of which there is something."""
        return set(self._places)

    def sizes(self) -> dict[str, int]:
        """How many elements of each parameter the files say there are."""
        return {name: max(p[0] + p[1] for p in places) for name, places in self._places.items()}

    def fill(self, values: Tensor, parameter: str, start: int) -> None:
        """Copies elements [start, start + numel) of a parameter into `values` (numel,).

        Raises:
            TrainingStateError: the files do not hold all of them.
        """
        filled = 0
        for begin, numel, name, key in self._places.get(parameter, []):
            low, high = max(start, begin), min(start + len(values), begin + numel)
            if low < high:
                part = self._file(name).get_slice(key)[low - begin : high - begin]
                values[low - start : high - start].copy_(part)
                filled += high - low
        if filled != len(values):
            raise TrainingStateError(
                f"checkpoint {self._folder}: {parameter} lacks {len(values) - filled} of "
                f"{len(values)} elements; it was written for another network"
            )

    def close(self) -> None:
        """Gives the memory maps back; the next `fill` maps anew."""
        self._mapped.close()
        self._open.clear()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                opened = safe_open(self._folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise TrainingStateError(
                    f"checkpoint {self._folder}: {name} is damaged ({error})"
                ) from error
            self._open[name] = self._mapped.enter_context(opened)
        return self._open[name]

    def _lengths(self, name: str) -> Iterator[tuple[str, int]]:
        file = self._file(name)
        for key in file.keys():  # noqa: SIM118 (no mapping)
            shape = file.get_slice(key).get_shape()
            if len(shape) != 1 or not re.fullmatch(r".+@\d+", key):
                raise TrainingStateError(
                    f"checkpoint {self._folder}: {name} holds {key!r}, which is no slice of a "
                    "parameter; it was written by another program"
                )
            yield key, shape[0]


@contextmanager
def opened(folder: Path, files: Iterable[str]) -> Iterator[Slices]:
    """The slices in some files of a checkpoint; memory maps end with the context.

    Raises:
        TrainingStateError: a file is no safetensors file, or holds something else.
    """
    slices = Slices(folder, files)
    try:
        yield slices
    finally:
        slices.close()
