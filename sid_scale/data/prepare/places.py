"""Opens what a source names: a folder or an archive."""

import zipfile
from pathlib import Path

from sid_scale.data.prepare.archives import ZipFiles
from sid_scale.data.prepare.files import FolderFiles, SourceError


def open_files(path: Path) -> "FolderFiles | ZipFiles":
    """The files in a folder or a zip archive.

    Raises:
        SourceError: it is neither, or cannot be read.
    """
    try:
        if path.is_dir():
            return FolderFiles(path)
        if path.is_file():
            return ZipFiles(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read ({error}); is it whole?") from error
    raise SourceError(f"{path}: there is no such folder or archive")
