"""What real images look like: statistics that generated ones are compared with.

Three kinds of files are read, none of which can run code:

- EDM2's `img512.pkl`: {"fid": {"mu", "sigma"}, "fd_dinov2": {"mu", "sigma"}}.
- EDM's and ADM's `.npz`: arrays `mu` and `sigma`, of FID. ADM's (`VIRTUAL_imagenet512.npz`) holds
  10,000 images besides, many gigabytes that are not read.
- Ours, `sid-scale evaluate reference`: arrays `METRIC.mu`, `METRIC.sigma` of Fréchet distances;
  for metrics that look at real images themselves `KIND.features` (N, D), Inception's under the name
  `precision.features`; and `about`, JSON text: how many images of which size, the detectors that
  saw them, and the Fréchet distances of held-out real images.
"""

import json
import math
import pickle
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sid_scale.atomic import atomic_write
from sid_scale.errors import SidScaleError
from sid_scale.evaluate.features import INCEPTION, METRICS, needs_statistics
from sid_scale.pickles.reader import PickleError, open_pickle
from sid_scale.pickles.values import array, mapping

FORMAT_VERSION = 1
ZIP = b"PK"
DAMAGED = (ValueError, KeyError, EOFError, MemoryError, RuntimeError, BadZipFile, zlib.error)
ABOUT = "about"
FEATURES = ".features"  # behind a kind, in the name of an array
NAMES = {INCEPTION: "precision"}  # of a kind whose features were first those of one metric
MAKE_ONE = "`sid-scale evaluate reference` makes one of shards or of a folder of images"


class ReferenceFileError(SidScaleError):
    """A reference that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class ReferenceFile:
    """Contents of one file."""

    moments: dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> mu (D,), sigma (D, D)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)  # kind -> (N, D)
    about: dict[str, Any] = field(default_factory=dict)
    not_read: tuple[str, ...] = ()  # kinds of features that are there but were not asked for

    @property
    def held_out(self) -> Mapping[str, float]:
        """Fréchet distances of held-out real images, by metric; they may be unknown."""
        distances: dict[str, float] = self.about.get("held_out", {}).get("distances", {})
        return distances


def read_reference(path: str | Path, kinds: Collection[str] | None = None) -> ReferenceFile:
    """Reads a reference of any of the three kinds.

    Args:
        kinds: of the features to read; they may be large. None: all.

    Raises:
        ReferenceFileError: missing, damaged, or of no known kind.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        if start and start != ZIP and not start.startswith(pickle.PROTO):
            raise ReferenceFileError(f"reference {path}: no .npz and no pickle. {MAKE_ONE}")
        held = _read_npz(path, kinds) if start == ZIP else _read_edm2(path)
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
    arrays: dict[str, Any] = {ABOUT: np.array(json.dumps(about))}
    for metric, (mu, sigma) in held.moments.items():
        arrays |= {f"{metric}.mu": mu, f"{metric}.sigma": sigma}
    for kind, features in held.features.items():
        arrays[NAMES.get(kind, kind) + FEATURES] = features
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ReferenceFileError(f"{path} cannot be written: {error}") from error


def _read_npz(path: Path, kinds: Collection[str] | None) -> ReferenceFile:
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = _features(archive.files)
            wanted = [name for kind, name in held.items() if kinds is None or kind in kinds]
            wanted += filter(_is_statistics, archive.files)
            arrays = {name: archive[name] for name in wanted}
        about = json.loads(str(arrays.pop(ABOUT, "{}")))
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
        for metric in (name.removesuffix(".mu") for name in arrays if name.endswith(".mu"))
        if f"{metric}.sigma" in arrays
    }
    features = {kind: arrays[name] for kind, name in held.items() if name in arrays}
    return ReferenceFile(moments, features, about, tuple(held.keys() - features.keys()))


def _is_statistics(name: str) -> bool:
    """Whether an array's name is that of statistics, or of what is said about them."""
    metric, _, last = name.rpartition(".")
    if last in ("mu", "sigma"):
        return not metric or needs_statistics(metric)
    return name == ABOUT


def _features(names: Collection[str]) -> dict[str, str]:
    """Kind of features -> name of its array, of those that are among the names."""
    kinds = {name: kind for kind, name in NAMES.items()}
    stems = [name.removesuffix(FEATURES) for name in names if name.endswith(FEATURES)]
    return {kinds.get(stem, stem): stem + FEATURES for stem in stems}


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
    if not (held.moments or held.features or held.not_read):
        raise ReferenceFileError(
            f"reference {path}: holds statistics of no metric known here "
            f"({', '.join(METRICS)}). {MAKE_ONE}"
        )
    arrays = [a for pair in held.moments.values() for a in pair]
    shapes_fit = all(
        mu.ndim == 1 and sigma.shape == (mu.size, mu.size) for mu, sigma in held.moments.values()
    )
    for features in held.features.values():
        arrays.append(features)
        shapes_fit = shapes_fit and features.ndim == 2 and len(features) > 1
    if not shapes_fit:
        raise ReferenceFileError(f"reference {path}: mu (D,) and sigma (D, D) are of other shapes")
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays):
        raise ReferenceFileError(f"reference {path}: holds what is no finite number")
    if not _says_what_is_known(held):
        raise ReferenceFileError(
            f"reference {path}: what it says of its images, detectors or held-out images is of "
            "another kind: make it again"
        )


def _says_what_is_known(held: ReferenceFile) -> bool:
    """Whether what a file says about itself can be read: distances of held-out images are positive
    numbers. There may be nothing."""
    try:
        hashes = held.about.get("detectors", {}).values()
        return (
            all(0 < distance < math.inf for distance in held.held_out.values())
            and all(isinstance(digest, str) for digest in hashes)
            and isinstance(held.about.get("resolution"), int | None)
        )
    except (TypeError, AttributeError):
        return False
