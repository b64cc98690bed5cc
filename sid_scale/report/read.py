"""A run folder as it is on the disk: finished, just begun, or damaged in places.

Whatever can be read is; what cannot becomes a notice, a sentence for the page. Only a folder that
is no run at all is an error.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_scale.config.parse import ConfigError, read_yaml
from sid_scale.errors import SidScaleError
from sid_scale.measurements import is_number
from sid_scale.metrics_log import METRICS, parse_record
from sid_scale.report.measurements import Measurement, read_evaluations
from sid_scale.report.teacher import teacher_title

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
MOST_NAMED = 5  # lines, in a notice


class ReportError(SidScaleError):
    """A report that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Grid:
    """A grid of samples drawn while training."""

    images_seen: int
    path: Path


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds."""

    folder: Path
    name: str  # for people; no two runs of a report have the same
    config: Mapping[str, Any]  # as in the file; empty if there is none
    config_text: str
    environment: Mapping[str, Any]
    records: tuple[Mapping[str, float | None], ...]  # of rising images_seen; null: not finite
    grids: tuple[Grid, ...]  # of rising images_seen
    evaluations: tuple[Measurement, ...]
    generator: Path | None  # generator/, or else best_generator/, or the last snapshot
    teacher: str  # for people; empty if nothing says which it is
    notices: tuple[str, ...]

    @property
    def images_seen(self) -> int:
        """How far the run has come; 0 if it says nothing."""
        return int(self.records[-1]["images_seen"] or 0) if self.records else 0


def read_runs(folders: Iterable[Path]) -> list[RunFolder]:
    """Run folders in the order given, each once.

    Raises:
        ReportError: one is no run folder.
    """
    unique = {folder.resolve(): folder for folder in folders}
    return [
        read_run(folder, name)
        for folder, name in zip(unique.values(), names_of(list(unique)), strict=True)
    ]


def read_run(folder: Path, name: str) -> RunFolder:
    """One run folder.

    Raises:
        ReportError: it is none.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; name the run_dir of a run")
    if not any((folder / file).is_file() for file in (CONFIG, METRICS)):
        raise ReportError(
            f"{folder}: no run folder: neither {CONFIG} nor {METRICS} is there; name the run_dir "
            "of a run"
        )
    notices: list[str] = []
    config, text = _read_config(folder / CONFIG, notices)
    evaluations, evaluation_notices = read_evaluations(folder)
    generator = _newest_generator(folder)
    return RunFolder(
        folder,
        name,
        config,
        text,
        _read_environment(folder / ENVIRONMENT, notices),
        read_records(folder / METRICS, notices),
        _grids(folder / "samples"),
        evaluations,
        generator,
        teacher_title(config, generator),
        (*notices, *evaluation_notices),
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of different folders' paths, as many as distinguish them."""
    parts = [folder.parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def read_records(path: Path, notices: list[str]) -> tuple[Mapping[str, float | None], ...]:
    """The records of `metrics.jsonl`; a record takes the place of those that it repeats.

    A last line that is only half there belongs to a run at work, and is left out. Other lines
    that are no records become a notice.
    """
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError as error:
        notices.append(f"{path.name} cannot be read: {error}.")
        return ()
    kept: list[dict[str, float | None]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines[:-1], start=1):
        record = _record(line)
        if record is None:
            damaged.append(number)
            continue
        while kept and _seen(kept[-1]) >= _seen(record):
            kept.pop()
        kept.append(record)
    if damaged:
        named = ", ".join(map(str, damaged[:MOST_NAMED]))
        more = " and others" if len(damaged) > MOST_NAMED else ""
        notices.append(
            f"{path.name}: {len(damaged)} of {len(lines) - 1} lines hold no record and are left "
            f"out (line {named}{more})."
        )
    return tuple(kept)


def _record(line: str) -> dict[str, float | None] | None:
    fields = parse_record(line)
    return fields and {
        name: float(value) if is_number(value) else None
        for name, value in fields.items()
        if value is None or isinstance(value, int | float)
    }


def _seen(record: Mapping[str, float | None]) -> float:
    return record["images_seen"] or 0.0


def _read_config(path: Path, notices: list[str]) -> tuple[Mapping[str, Any], str]:
    if not path.is_file():
        notices.append(f"There is no {path.name}: the settings are unknown.")
        return {}, ""
    try:
        return read_yaml(path), path.read_text()
    except (ConfigError, RecursionError, ValueError) as error:
        notices.append(f"{path.name} cannot be read: {error}.")
        return {}, path.read_text(errors="replace")


def _read_environment(path: Path, notices: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        notices.append(f"There is no {path.name}: what the run ran on is unknown.")
        return {}
    try:
        environment = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        notices.append(f"{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(environment, dict):
        notices.append(f"{path.name} holds no JSON object.")
        return {}
    return environment


def _grids(folder: Path) -> tuple[Grid, ...]:
    numbered = [Grid(int(p.stem), p) for p in folder.glob("*.png") if _is_count(p.stem)]
    return tuple(sorted(numbered, key=lambda grid: grid.images_seen))


def _newest_generator(folder: Path) -> Path | None:
    for name in ("generator", "best_generator"):
        if (folder / name).is_dir():
            return folder / name
    snapshots = [p for p in (folder / "snapshots").glob("*") if p.is_dir() and _is_count(p.name)]
    return max(snapshots, key=lambda path: int(path.name), default=None)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18
