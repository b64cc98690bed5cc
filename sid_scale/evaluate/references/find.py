"""Which file's statistics, or features of real images, each metric is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sid_scale.evaluate.features import (
    FDR,
    fdr_members,
    features_of,
    kind_of,
    needs_real_features,
    needs_statistics,
)
from sid_scale.evaluate.metrics.distances import FeatureStatistics
from sid_scale.evaluate.references.files import (
    MAKE_ONE,
    ReferenceFile,
    ReferenceFileError,
    read_reference,
)
from sid_scale.hashing import sha256_file


@dataclass(frozen=True)
class Reference:
    """What one metric is compared with: `statistics`, or `features` of real images."""

    file: str
    about: dict[str, Any]  # of a file of our own: resolution, images, detectors
    statistics: FeatureStatistics | None = None
    features: np.ndarray | None = None  # (N, D)
    held_out: float | None = None  # a Fréchet distance's value for held-out real images

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


def find_references(metrics: Sequence[str], files: Sequence[str | Path]) -> dict[str, Reference]:
    """For each metric that is compared with something, the first file that has it.

    Raises:
        ReferenceFileError: a file is missing, damaged or of no known kind, or none has a metric.
    """
    kinds = features_of(metric for metric in metrics if needs_real_features(metric))
    contents = [(Path(file), read_reference(file, kinds)) for file in files]
    found: dict[str, Reference] = {}
    for metric in metrics:
        if not (needs_statistics(metric) or needs_real_features(metric)):
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
    if FDR in metrics:
        _need_held_out({metric: found[metric] for metric in fdr_members(metrics)})
    return found


def real_counts(references: Mapping[str, Reference]) -> dict[str, int]:
    """Metric -> number of real images, of those that look at real features."""
    features = {metric: reference.features for metric, reference in references.items()}
    return {metric: len(real) for metric, real in features.items() if real is not None}


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
        kind = kind_of(metric)
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
                f"{str(detectors.get(kind))[:12]}...): use the same file for both"
            )


def _pick(metric: str, held: ReferenceFile, file: str) -> Reference | None:
    if needs_real_features(metric):
        features = held.features.get(kind_of(metric))
        return None if features is None else Reference(file, held.about, features=features)
    if metric not in held.moments:
        return None
    statistics = FeatureStatistics.from_moments(*held.moments[metric])
    held_out = held.held_out.get(metric)
    return Reference(file, held.about, statistics, held_out=held_out)


def _need_held_out(references: Mapping[str, Reference]) -> None:
    for metric, reference in references.items():
        if reference.held_out is None:
            raise ReferenceFileError(
                f"{FDR} divides {metric} by that of held-out real images, and reference "
                f"{reference.file} does not say it: make one with `sid-scale evaluate reference "
                "--held-out DIR`"
            )


def _names(held: ReferenceFile) -> str:
    kinds = [*held.features, *held.not_read]
    names = [*held.moments, *(f"features of {kind}" for kind in kinds)]
    return ", ".join(names) or "nothing"
