"""Figures as files hold them: the `metrics.json` of `sid-scale evaluate`, and a run's own.

A `metrics.json` has its metrics by name at the top, and beside them how they were made. A run that
is evaluated while it trains has its figures in metrics.jsonl, and how they are made in
evaluation.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sid_scale.errors import SidScaleError
from sid_scale.metrics_log import read_metrics

FORMAT_VERSION = 1
METRICS_FILE = "metrics.json"
DEMO_SUMMARY, DEMO_FD = "summary.json", "demo_fd"  # of the demo's judge, and its figure's name
# Of a metrics.json, what is no metric.
CIRCUMSTANCES = {"num", "first_seed", "seconds", "format_version"}
LARGEST = 1e300  # an integer of hundreds of digits is no float; nor is infinity or NaN below it
PREFIX = "evaluation/"  # of the figures' names in metrics.jsonl and TensorBoard
BASIS = "evaluation.json"  # what a run's own figures were measured with


class MeasurementError(SidScaleError):
    """A file of metrics that cannot be used; the message says which and why."""


class ForeignFileError(MeasurementError):
    """A `metrics.json` that another program wrote."""


def read_metrics_file(path: Path) -> Mapping[str, Any]:
    """What a `metrics.json` holds.

    Raises:
        ForeignFileError: it is of another program.
        MeasurementError: it cannot be read, is of another format, or holds no figure.
    """
    fields = _read_json(path)
    if not isinstance(fields, dict) or "format_version" not in fields:
        raise ForeignFileError(f"{path}: not written by `sid-scale evaluate`")
    version = fields["format_version"]
    if version != FORMAT_VERSION:
        raise MeasurementError(
            f"{path}: not metrics that this program reads: format_version {version!r:.40}, "
            f"not {FORMAT_VERSION}"
        )
    if not figures_in(fields):
        raise MeasurementError(f"{path}: holds no metric with a finite value")
    return fields


def figures_in(fields: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a `metrics.json`, by name."""
    return {
        name: float(value)
        for name, value in fields.items()
        if name not in CIRCUMSTANCES and is_number(value)
    }


def read_own_figures(run: Path, images_seen: int) -> tuple[dict[str, float], Mapping[str, Any]]:
    """What a run has measured of its own generator at `images_seen` images.

    -> metrics by name, and with what they were measured; both empty if it has measured nothing, or
    does not say with what.

    Raises:
        OSError: metrics.jsonl is there and cannot be read.
    """
    basis = read_basis(run / BASIS)
    if not basis or images_seen <= basis["since_images"]:
        return {}, {}
    figures = {
        name.removeprefix(PREFIX): float(value)
        for record in read_metrics(run)
        if record["images_seen"] == images_seen
        for name, value in record.items()
        if name.startswith(PREFIX) and is_number(value)
    }
    return figures, group(basis, "measured_with") if figures else {}


def read_basis(path: Path) -> dict[str, Any]:
    """What evaluation.json says; nothing if it is not there or damaged."""
    try:
        basis = json.loads(path.read_text())
        return basis if isinstance(basis["since_images"], int) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def read_object(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds, which is to be an object.

    Raises:
        MeasurementError: it is none, or cannot be read.
    """
    fields = _read_json(path)
    if not isinstance(fields, dict):
        raise MeasurementError(f"{path}: holds no JSON object")
    return fields


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MeasurementError(f"{path}: cannot be read as JSON: {error}") from error


def group(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in an object; empty if there is none of that name."""
    inner = fields.get(name)
    return inner if isinstance(inner, Mapping) else {}


def integer(value: Any) -> int | None:
    """A number that is whole; None: it is not."""
    return int(value) if is_number(value) and value == int(value) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
