"""SHA-256 of files."""

import hashlib
import os

BLOCK = 1 << 20  # bytes that are read at once


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's contents, in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
