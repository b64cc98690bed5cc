"""A folder's contents and what they were made from: one folder takes one set of inputs."""

import json
from pathlib import Path
from typing import Any

LONGEST = 200  # characters of one value


def changed_inputs(path: Path, what: str, inputs: dict[str, Any]) -> str | None:
    """An error message, if the file `path` says that a folder's `what` were made from other inputs.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    differing = differences(json.loads(path.read_text()), inputs)
    if not differing:
        return None
    return (
        f"{path} says that the {what} there were made otherwise: {'; '.join(differing)}. "
        "Choose another folder, or delete this one."
    )


def differences(there: Any, here: dict[str, Any]) -> list[str]:
    """Each setting of `here` that is another one `there`, in words; of a group, those within."""
    there = there if isinstance(there, dict) else {}
    found: list[str] = []
    for key, value in here.items():
        before = there.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += [f"{key}.{inner}" for inner in differences(before, value)]
        elif before != value:
            found.append(f"{key} {_short(before)} there, {_short(value)} now")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
