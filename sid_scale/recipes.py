"""What made a folder's contents, told in a file beside them, so that they are made one way only."""

import json
from typing import Any

LONGEST = 200  # characters of one value


def differences(there: Any, here: dict[str, Any]) -> list[str]:
    """Each setting of `here` that the folder's own recipe has otherwise, in words."""
    there = there if isinstance(there, dict) else {}
    return [
        f"{key} {_short(there.get(key))} there, {_short(value)} now"
        for key, value in here.items()
        if there.get(key) != value
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
