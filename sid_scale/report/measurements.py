"""What evaluations have measured: `metrics.json`, one network each, and the demo's summary.

A file of `sid-scale evaluate` holds its metrics by name at the top, and beside them how
they were made. Networks are generators or teachers; a teacher's figures are a yardstick.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from sid_scale.evaluate.features import (
    FDR,
    FRECHET,
    HIGHER_IS_BETTER,
    KERNEL,
    LATENTS,
    MONGE,
    NEIGHBOURS,
    PIXELS,
    family_of,
)
from sid_scale.measurements import (
    DEMO_FD,
    DEMO_SUMMARY,
    MeasurementError,
    figures_in,
    group,
    integer,
    is_number,
    read_metrics_file,
    read_object,
)

TEACHER, GENERATOR = "teacher", "generator"


class MetricKind(NamedTuple):
    """How a metric is shown."""

    title: str
    better: str  # "lower", "higher", or "" if not known


FAMILY_TITLES = {FRECHET: "FD", KERNEL: "KD", MONGE: "MIND"}
TITLES = {
    "fid": "FID",
    "fd_dinov2": "FD-DINOv2",
    FDR: "FDr",
    "kid": "KID",
    "kd_dinov2": "KD-DINOv2",
    "mind": "MIND",
    "mind_dinov2": "MIND-DINOv2",
    **{
        family + features: f"{title} in {features}"
        for family, title in FAMILY_TITLES.items()
        for features in (PIXELS, LATENTS)
    },
    DEMO_FD: "Fréchet distance (8x8 grey)",
    "is": "Inception Score",
    **{name: name for name in NEIGHBOURS},
}
METRICS = {
    name: MetricKind(title, "higher" if name in HIGHER_IS_BETTER else "lower")
    for name, title in TITLES.items()
}


def metric_kind(name: str) -> MetricKind:
    """Of a known metric, of one by an encoder of the user's, or by its own name of another."""
    if name in METRICS:
        return METRICS[name]
    if family := family_of(name):
        return MetricKind(f"{FAMILY_TITLES[family]}-{name.removeprefix(family)}", "lower")
    return MetricKind(name, "")


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics each once: the known ones first, in their order."""
    unique = set(names)
    return [name for name in METRICS if name in unique] + sorted(unique - METRICS.keys())


@dataclass(frozen=True)
class Network:
    """What was evaluated."""

    kind: str  # "generator" or "teacher"
    path: str = ""
    sha256: str = ""
    images_seen: int | None = None
    evaluations: int | None = None  # of the network, for one image
    guidance: float | None = None
    relative_width: float | None = None  # of an average that was reconstructed after the run

    @property
    def title(self) -> str:
        """A teacher by its NFE, a generator by what it has seen."""
        guided = self.guidance is not None and self.guidance != 1
        guidance = f", guidance {self.guidance:g}" if guided else ""
        if self.kind == TEACHER:
            many = f", {self.evaluations} NFE" if self.evaluations else ""
            return f"teacher{many}{guidance}"
        seen = f" after {self.images_seen:,} images" if self.images_seen is not None else ""
        width = f", average of width {self.relative_width:g}" if self.relative_width else ""
        return f"{self.kind}{seen}{width}{guidance}"


@dataclass(frozen=True)
class Repeats:
    """One metric over several sets of seeds; the papers report the smallest."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Unbiased; nan of one value."""
        if len(self.values) < 2:
            return math.nan
        squares = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (len(self.values) - 1))


@dataclass(frozen=True)
class Measurement:
    """One network's metrics."""

    source: Path  # its file; below a run folder, from there on
    network: Network
    values: Mapping[str, float]
    num: int | None = None
    first_seed: int | None = None
    repeats: Mapping[str, Repeats] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)  # what -> SHA-256


def read_evaluations(run: Path) -> tuple[tuple[Measurement, ...], list[str]]:
    """What is in a run folder, and notices about what cannot be read: any
    `metrics.json` below `evaluation/`, and the demo's `summary.json`."""
    evaluations: list[Measurement] = []
    notices: list[str] = []
    for path in sorted(run.glob("evaluation/**/metrics.json")):
        try:
            found = read_evaluation(path)
            evaluations.append(replace(found, source=path.relative_to(run)))
        except MeasurementError as error:
            notices.append(f"{error}.")
    if (run / DEMO_SUMMARY).is_file():
        try:
            evaluations += read_demo_summary(run / DEMO_SUMMARY)
        except MeasurementError as error:
            notices.append(f"{error}.")
    return tuple(evaluations), notices


def read_evaluation(path: Path) -> Measurement:
    """One `metrics.json`.

    Raises:
        MeasurementError: it cannot be read, or is of another format.
    """
    fields = read_metrics_file(path)
    return Measurement(
        path,
        _network(group(fields, "network")),
        figures_in(fields),
        integer(fields.get("num")),
        integer(fields.get("first_seed")),
        _repeats(group(fields, "repeats")),
        {
            **_hashes(group(fields, "references"), "reference"),
            **_hashes(group(fields, "detectors"), "detector"),
        },
    )


def read_demo_summary(path: Path) -> list[Measurement]:
    """What `python -m sid_scale.demo judge` has measured: the teacher, and every snapshot of the
    generator. A summary without snapshots has the generator at start and end.

    Raises:
        MeasurementError: it cannot be read.
    """
    fields = read_object(path)
    found: list[tuple[Network, Any]] = []
    for name, value in fields.items():
        if match := re.fullmatch(r"teacher_fd_(\d{1,6})", name):
            found.append((Network(TEACHER, evaluations=int(match[1])), value))
    generators: dict[int | None, Any] = {
        int(seen): value
        for seen, value in group(fields, "student_fd_snapshots").items()
        if re.fullmatch(r"[0-9]{1,18}", seen)
    }
    generators[0] = fields.get("student_fd_start")
    generators[integer(fields.get("images_seen"))] = fields.get("student_fd")
    for seen, value in sorted(generators.items(), key=lambda item: item[0] or 0):
        found.append((Network(GENERATOR, images_seen=seen, evaluations=1), value))
    return [
        Measurement(Path(path.name), network, {DEMO_FD: float(value)})
        for network, value in found
        if is_number(value)
    ]


def _network(fields: Mapping[str, Any]) -> Network:
    guidance, width = fields.get("guidance"), fields.get("relative_width")
    if isinstance(guidance, Mapping):
        guidance = guidance.get("weight", guidance.get("guidance"))
    return Network(
        TEACHER if fields.get("kind") == TEACHER else GENERATOR,
        str(fields.get("path") or ""),
        str(fields.get("sha256") or ""),
        integer(fields.get("images_seen")),
        integer(fields.get("evaluations")),
        float(guidance) if is_number(guidance) else None,
        float(width) if is_number(width) else None,
    )


def _repeats(fields: Mapping[str, Any]) -> dict[str, Repeats]:
    repeats = {}
    for name, entry in fields.items():
        values = entry.get("values") if isinstance(entry, Mapping) else None
        if isinstance(values, list) and values and all(map(is_number, values)):
            repeats[name] = Repeats(tuple(map(float, values)))
    return repeats


def _hashes(fields: Mapping[str, Any], what: str) -> dict[str, str]:
    hashes = {}
    for name, entry in fields.items():
        digest = entry.get("sha256") if isinstance(entry, Mapping) else entry
        if isinstance(digest, str) and digest:
            hashes[f"{what} {name}"] = digest
    return hashes
