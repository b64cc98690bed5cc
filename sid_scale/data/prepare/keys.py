"""Keys of samples: one a file, short, and readable where the file's name is.

A name that a key can hold is the key, without its suffix. Any other - of another script, too long,
with dots or spaces - is cut to what can be read, and a hash of the whole name tells it apart.
"""

import hashlib
import os
import re

FLIPPED = "_flipped"  # what the key of an image's mirror image ends with
# WebDataset cuts a key at its first dot and skips `__names`; ustar has room for 100 characters.
KEY = re.compile(r"(?!__)[A-Za-z0-9_/-]{1,90}")
_PLAIN = re.compile(rf"(?!_)(?!.*{FLIPPED}$)[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
_LONGEST = 90 - len(FLIPPED)
_READABLE, _HASH = 40, 24  # characters of a hashed key; 24 hexadecimal ones are 96 bits


def key_of(name: str) -> str:
    """The key of a file by its name: `00000/img7.png` -> `00000/img7`."""
    stem = name[: name.rfind(".")]
    return stem if len(stem) <= _LONGEST and _PLAIN.fullmatch(stem) else hashed_key(name)


def hashed_key(name: str) -> str:
    """A key that no other name has: `a/my cat.png` -> `a_my_cat_` and a hash."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name[: name.rfind(".")]).strip("_")[:_READABLE]
    return f"{readable}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:_HASH]}"
