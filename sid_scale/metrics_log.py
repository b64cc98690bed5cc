"""A run's metrics.jsonl, read: one JSON object a logging interval."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order of the file; [] without one.

    Half a line, as a crash leaves it, and anything else that is no record is left out.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    return [record for line in lines if (record := parse_record(line)) is not None]


def parse_record(line: str) -> dict[str, Any] | None:
    """One line as a record, None if it is none: an object that counts `images_seen`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and type(record.get("images_seen")) is int
    return record if is_record else None
