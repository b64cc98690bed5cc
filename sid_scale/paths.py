"""Paths as people write them: `~/runs/x`, `$SCRATCH/runs/x`."""

import os
import re

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_SHELL = "pipe:"  # begins a command that WebDataset gives to a shell, which expands by itself


def expand(text: str) -> str:
    """A path, or a URL, with the home folder and environment variables put in.

    Raises:
        ValueError: a variable is not set, or there is no such user.
    """
    if text.startswith(_SHELL):
        return text
    for match in _VARIABLE.finditer(text):
        if not os.environ.get(match[1].strip("{}")):  # an empty one would lead to the root
            raise ValueError(f"the environment has no variable {match[0]}, or an empty one")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~"):
        raise ValueError(f"there is no user {expanded.partition('/')[0]}")
    return expanded
