"""Snapshots of a run's averages of other widths, written and read without DeepSpeed or ranks.

    RUN/ema_snapshots/000000012345/     named after the images seen
      0.050.safetensors                 the average of that relative width, one file each
      0.100.safetensors
      buffers.safetensors               what is not trained
      snapshot.json                     what the files are, their sizes and SHA-256

Averages are float32, whole parameters by their names in memory, and of what is trained alone:
weights that stay frozen are in the folder that the network started from, as for a checkpoint.
A folder takes its name when all of it is on the disk.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sid_scale.atomic import flush_folder, write_durably
from sid_scale.errors import SidScaleError
from sid_scale.tensor_file import Entry, Written, write_tensors
from sid_scale.zero import retention
from sid_scale.zero.power_ema import exponent, width_name
from sid_scale.zero.saved import BUFFERS, Manifest, are_files

EMA_SNAPSHOTS = "ema_snapshots"  # in a run folder
SNAPSHOT = "snapshot.json"
BUFFERS_FILE = f"{BUFFERS}.safetensors"
FORMAT_VERSION = 1


class SnapshotError(SidScaleError):
    """A snapshot that cannot be written or used; the message says which and why."""


@dataclass(frozen=True)
class Snapshot:
    """The averages of one moment."""

    folder: Path
    images_seen: int
    averages: dict[float, str]  # relative width -> its file
    files: dict[str, dict[str, Any]]  # name -> {"bytes", "sha256"}
    network: dict[str, Any]  # `config.json` of the generator at that moment
    frozen: dict[str, Any] | None  # the weights that are not here, as a checkpoint describes them

    def check_files(self) -> None:
        """Compares all files with what was written.

        Raises:
            SnapshotError: one is missing, of another size or of another content.
        """
        faults = Manifest(self.folder, self.files).faults(sorted(self.files))
        if faults:
            raise SnapshotError(
                f"snapshot {self.folder} is damaged: {'; '.join(faults[:3])}; remove it to "
                "reconstruct without it"
            )


def write_snapshot(
    root: Path,
    images_seen: int,
    averages: Iterable[tuple[float, Mapping[str, Tensor]]],
    buffers: Mapping[str, Tensor],
    network: dict[str, Any],
    frozen: dict[str, Any] | None,
) -> Path:
    """Writes a snapshot into the folder `root`, over one of the same moment.

    Args:
        averages: relative widths and parameters, one average after another.
        network, frozen: see `Snapshot`.

    Raises:
        SnapshotError: the disk is full, the folder read-only ...
    """
    name = retention.folder_name(images_seen)
    folder, partial = root / name, root / f".{name}.partial"
    written: dict[str, Written] = {}
    widths = {}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for width, parameters in averages:
            file = f"{width_name(width)}.safetensors"
            widths[file] = width
            written[file] = _write(partial / file, parameters)
        written[BUFFERS_FILE] = _write(partial / BUFFERS_FILE, buffers)
        described = {
            "format_version": FORMAT_VERSION,
            "images_seen": images_seen,
            "averages": widths,
            "files": {file: w._asdict() for file, w in written.items()},
            "network": network,
            "frozen": frozen,
        }
        write_durably(partial / SNAPSHOT, f"{json.dumps(described, indent=2)}\n".encode())
        flush_folder(partial)
        if folder.exists():
            retention.remove(folder)
        os.replace(partial, folder)
        flush_folder(root)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise SnapshotError(
            f"snapshot {folder} cannot be written: {error}. Make room or lift the restriction and "
            "start the same command again: resume: auto goes on from the newest checkpoint"
        ) from error
    return folder


def _write(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    return write_tensors(path, entries, tensors.values())


def remove_after(root: Path, images_seen: int) -> None:
    """Removes the snapshots of moments after `images_seen`, and what is half written.

    Raises:
        SnapshotError: they cannot be removed.
    """
    try:
        retention.clean_partial(root)
        for folder in retention.checkpoints(root):
            if int(folder.name) > images_seen:
                retention.remove(folder)
    except OSError as error:
        raise SnapshotError(f"later snapshots in {root} cannot be removed: {error}") from error


def read_snapshots(run: Path) -> list[Snapshot]:
    """The snapshots in a run folder, the oldest first; their files are not looked at.

    Raises:
        SnapshotError: there are none, or a description is damaged.
    """
    if not run.is_dir():
        raise SnapshotError(f"{run}: no such folder; name the run_dir of a run")
    root = run / EMA_SNAPSHOTS
    found = [_read(folder) for folder in retention.checkpoints(root)]
    if not found:
        raise SnapshotError(
            f"{root} holds no snapshots: a run writes them whose settings name "
            "ema.relative_widths, such as [0.05, 0.1]"
        )
    return found


def _read(folder: Path) -> Snapshot:
    try:
        stored = json.loads((folder / SNAPSHOT).read_text())
        version = stored["format_version"]
        if version != FORMAT_VERSION:
            raise SnapshotError(
                f"snapshot {folder} has format version {version!r:.40}; this program reads "
                f"{FORMAT_VERSION}"
            )
        averages = {float(width): file for file, width in stored["averages"].items()}
        for width in averages:
            exponent(width)  # refuses what is no relative width
        files, frozen, network = stored["files"], stored["frozen"], stored["network"]
        sound = (
            stored["images_seen"] == int(folder.name) > 0
            and averages
            and {*averages.values(), BUFFERS_FILE} == set(files)
            and are_files(files)
            and isinstance(network, dict)
            and isinstance(frozen, dict | None)
        )
        if not sound:
            raise ValueError("odd entries")
    except SnapshotError:
        raise
    except (
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise SnapshotError(
            f"snapshot {folder}: {SNAPSHOT} is missing or damaged ({error}); remove the folder to "
            "reconstruct without it"
        ) from error
    return Snapshot(folder, int(folder.name), averages, files, network, frozen)
