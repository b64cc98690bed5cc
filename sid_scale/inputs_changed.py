"""What made a folder's contents, told in a file beside them, so that they are made one way only."""

import json
from typing import Any

LONGEST = 200  # characters of one value


def differences(there: Any, here: dict[str, Any]) -> list[str]:
    """Each setting of `here` that the folder's own recipe has otherwise, in words: of a group, what
    differs in it."""
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
