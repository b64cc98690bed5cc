"""What real images look like: statistics that generated ones are compared with.

Three kinds of files are read, none of which can run code:

- EDM2's `img512.pkl`: {"fid": {"mu", "sigma"}, "fd_dinov2": {"mu", "sigma"}}.
- EDM's and ADM's `.npz`: arrays `mu` and `sigma`, of FID. ADM's (`VIRTUAL_imagenet512.npz`) holds
  10,000 images besides, many gigabytes that are not read.
- Ours, `sid-scale evaluate reference`: arrays `METRIC.mu`, `METRIC.sigma`; for precision
  and recall `precision.features` (N, D), of the real images themselves; and `about`, JSON text:
  how many images of which size, and the detectors that saw them.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sid_scale.atomic import atomic_write
from sid_scale.errors import SidScaleError
from sid_scale.evaluate.features import FEATURES, FRECHET, NEIGHBOURS
from sid_scale.evaluate.metrics.distances import FeatureStatistics
from sid_scale.hashing import sha256_file
from sid_scale.pickles.reader import PickleError, open_pickle
from sid_scale.pickles.values import array, mapping

FORMAT_VERSION = 1
DAMAGED = (ValueError, KeyError, EOFError, MemoryError, RuntimeError, BadZipFile, zlib.error)
MANIFOLD = "precision"  # whose features precision and recall share
ARRAYS = {"about", "mu", "sigma", f"{MANIFOLD}.features"}.union(
    f"{metric}.{name}" for metric in FRECHET for name in ("mu", "sigma")
)
MAKE_ONE = "`sid-scale evaluate reference` makes one of shards or of a folder of images"


class ReferenceFileError(SidScaleError):
    """A reference that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class Reference:
    """What one metric is compared with: `statistics`, or for precision and recall `features`."""

    file: str
    about: dict[str, Any]  # of a file of our own: resolution, images, detectors
    statistics: FeatureStatistics | None = None
    features: np.ndarray | None = None  # (N, D)

    @cached_property
    def sha256(self) -> str:
        """The file's. All of it is read, which may take a while: for one rank of many.

        Raises:
            ReferenceFileError: it cannot be read any more.
        """
        try:
            return sha256_file(self.file)
        except OSError as error:
            raise ReferenceFileError(f"reference {self.file}: cannot be read: {error}") from error

    @property
    def size(self) -> int:
        """D, the number of features."""
        if self.statistics is not None:
            return self.statistics.total.size
        assert self.features is not None
        return int(self.features.shape[1])


@dataclass(frozen=True)
class ReferenceFile:
    """Contents of one file."""

    moments: dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> mu (D,), sigma (D, D)
    features: np.ndarray | None = None  # (N, D), for precision and recall
    about: dict[str, Any] = field(default_factory=dict)


def find_references(metrics: Sequence[str], files: Sequence[str | Path]) -> dict[str, Reference]:
    """For each metric that is compared with something, the first file that has it.

    Raises:
        ReferenceFileError: a file is missing, damaged or of no known kind, or none has a metric.
    """
    contents = [(Path(file), read_reference(file)) for file in files]
    found: dict[str, Reference] = {}
    for metric in metrics:
        if metric not in FRECHET + NEIGHBOURS:
            continue
        for path, held in contents:
            reference = _pick(metric, held, str(path))
            if reference is not None:
                found[metric] = reference
                break
        else:
            held_by = "; ".join(f"{path} has {_names(held)}" for path, held in contents)
            raise ReferenceFileError(
                f"{metric} needs a reference, and none has it ({held_by or 'none is given'}). "
                f"Name one with --reference (in a run's YAML evaluation.reference). {MAKE_ONE}"
            )
    return found


def check_references(
    references: Mapping[str, Reference],
    sizes: Mapping[str, int],
    resolution: int | None,
    detectors: Mapping[str, str],
) -> None:
    """Makes sure that references and what will be compared with them are of one kind.

    Args:
        sizes: kind of features -> D.
        resolution: of the generated images; None if none are decoded.
        detectors: kind of features -> SHA-256 of the detector.

    Raises:
        ReferenceFileError: says which metric, and how it differs.
    """
    for metric, reference in references.items():
        kind = FEATURES[metric]
        where = f"{metric}: reference {reference.file}"
        if reference.size != sizes[kind]:
            raise ReferenceFileError(
                f"{where} has {reference.size} features, here are {sizes[kind]}: it was made for "
                "another detector or another network"
            )
        theirs = reference.about.get("resolution")
        if None not in (theirs, resolution) and theirs != resolution:
            raise ReferenceFileError(
                f"{where} is of images of {theirs}x{theirs}, the network's are "
                f"{resolution}x{resolution}: make one of images of that size"
            )
        seen_by = reference.about.get("detectors", {}).get(kind, detectors.get(kind))
        if seen_by != detectors.get(kind):
            raise ReferenceFileError(
                f"{where} was made with another detector (SHA-256 {str(seen_by)[:12]}..., here "
                f"{detectors[kind][:12]}...): use the same file for both"
            )


def read_reference(path: str | Path) -> ReferenceFile:
    """Reads a reference of any of the three kinds.

    Raises:
        ReferenceFileError: missing, damaged, or of no known kind.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        held = _read_npz(path) if start == b"PK" else _read_edm2(path)
    except OSError as error:
        raise ReferenceFileError(
            f"reference {path}: cannot be read: {error.strerror or error}. EDM2's is named "
            "img512.pkl (nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/), EDM's cifar10-32x32.npz "
            "(nvlabs-fi-cdn.nvidia.com/edm/fid-refs/), ADM's VIRTUAL_imagenet512.npz; "
            f"{MAKE_ONE}"
        ) from error
    except PickleError as error:
        raise ReferenceFileError(f"reference {error}") from error
    _check(held, path)
    return held


def write_reference(path: Path, held: ReferenceFile) -> None:
    """Writes a file of our own kind.

    Raises:
        ReferenceFileError: the disk is full, the folder read-only ...
    """
    about = {"format_version": FORMAT_VERSION, **held.about}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for metric, (mu, sigma) in held.moments.items():
        arrays |= {f"{metric}.mu": mu, f"{metric}.sigma": sigma}
    if held.features is not None:
        arrays[f"{MANIFOLD}.features"] = held.features
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ReferenceFileError(f"{path} cannot be written: {error}") from error


def _pick(metric: str, held: ReferenceFile, file: str) -> Reference | None:
    if metric in NEIGHBOURS:
        if held.features is None:
            return None
        return Reference(file, held.about, features=held.features)
    if metric not in held.moments:
        return None
    statistics = FeatureStatistics.from_moments(*held.moments[metric])
    return Reference(file, held.about, statistics)


def _names(held: ReferenceFile) -> str:
    names = [*held.moments, *(NEIGHBOURS if held.features is not None else ())]
    return ", ".join(names) or "nothing"


def _read_npz(path: Path) -> ReferenceFile:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in ARRAYS}
        about = json.loads(str(arrays.pop("about", "{}")))
    except DAMAGED as error:
        raise ReferenceFileError(
            f"reference {path}: damaged, or not arrays of numbers: {error}; fetch or make it again"
        ) from error
    if not isinstance(about, dict) or about.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise ReferenceFileError(f"reference {path}: of another version; make it again")
    if {"mu", "sigma"} <= arrays.keys():
        return ReferenceFile({"fid": (arrays["mu"], arrays["sigma"])})
    moments = {
        metric: (arrays[f"{metric}.mu"], arrays[f"{metric}.sigma"])
        for metric in FRECHET
        if {f"{metric}.mu", f"{metric}.sigma"} <= arrays.keys()
    }
    return ReferenceFile(moments, arrays.get(f"{MANIFOLD}.features"), about)


def _read_edm2(path: Path) -> ReferenceFile:
    where = str(path)
    with open_pickle(path) as found:
        contents = mapping(found, f"{where}: the whole")
        moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for metric in ("fid", "fd_dinov2"):
            if metric in contents:
                what = f"{where}: {metric}"
                held = mapping(contents[metric], what)
                mu, sigma = (array(held.get(name), f"{what}: {name}") for name in ("mu", "sigma"))
                moments[metric] = (mu, sigma)
    return ReferenceFile(moments)


def _check(held: ReferenceFile, path: Path) -> None:
    """Shapes and values, so that nothing surprises anybody after hours of sampling."""
    if not held.moments and held.features is None:
        raise ReferenceFileError(
            f"reference {path}: holds statistics of no metric known here "
            f"({', '.join(FRECHET + NEIGHBOURS)}). {MAKE_ONE}"
        )
    features = held.features
    arrays = [a for pair in held.moments.values() for a in pair]
    shapes_fit = all(
        mu.ndim == 1 and sigma.shape == (mu.size, mu.size) for mu, sigma in held.moments.values()
    )
    if features is not None:
        arrays.append(features)
        shapes_fit = shapes_fit and features.ndim == 2 and len(features) > 1
    if not shapes_fit:
        raise ReferenceFileError(f"reference {path}: mu (D,) and sigma (D, D) are of other shapes")
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays):
        raise ReferenceFileError(f"reference {path}: holds what is no finite number")
