"""Paths as people write them: `~/runs/x`, `$SCRATCH/runs/x`."""

import os
import re

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_SHELL = "pipe:"  # begins a command that WebDataset gives to a shell, which expands by itself


def expand(text: str) -> str:
    """A path, or a URL, with the home folder and environment variables put in.

    Raises:
        ValueError: a variable is not set.
    """
    if text.startswith(_SHELL):
        return text
    for match in _VARIABLE.finditer(text):
        if match[1].strip("{}") not in os.environ:
            raise ValueError(f"the environment has no variable {match[0]}")
    return os.path.expanduser(os.path.expandvars(text))
