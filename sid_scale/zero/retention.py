"""Which checkpoints of a run stay, and the names that point at them.

A folder of checkpoints holds one folder for each, named after the images seen; `latest` and
`best` are links to two of them. What begins with a dot is half written or half removed; what
ends with .damaged was found so, and is for its owner to look at and remove. One rank alone calls
these functions.
"""

import os
import shutil
from pathlib import Path

from sid_scale.zero.saved import MANIFEST

LATEST = "latest"
BEST = "best"  # by the metric that evaluation during training reports
DAMAGED = ".damaged"


def folder_name(images_seen: int) -> str:
    """Name of the checkpoint taken after so many images."""
    return f"{images_seen:012d}"


def checkpoints(folder: Path) -> list[Path]:
    """What bears a checkpoint's name in a folder, sound or not, oldest first."""
    found = [p for p in folder.glob("*") if p.name.isdecimal() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def link(folder: Path, name: str, checkpoint: Path) -> None:
    """Makes `folder`/`name` a link to one of its checkpoints, in one instant."""
    link = folder / f".{name}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    os.replace(link, folder / name)


def pointed(folder: Path, name: str) -> Path | None:
    """The checkpoint that `latest` or `best` names, None if there is none."""
    link = folder / name
    return folder / os.readlink(link) if link.is_symlink() else None


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Removes what need not stay.

    The newest `keep` stay, of every `keep_every` images (0: none) the first, and the best.
    """
    found = [p for p in checkpoints(folder) if (p / MANIFEST).is_file()]
    stay = set(found[-keep:])
    stay.update(p for p in (pointed(folder, LATEST), pointed(folder, BEST)) if p is not None)
    if keep_every:
        first: dict[int, Path] = {}
        for checkpoint in found:
            first.setdefault(int(checkpoint.name) // keep_every, checkpoint)
        stay.update(checkpoint for passed, checkpoint in first.items() if passed > 0)
    for checkpoint in found:
        if checkpoint not in stay:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint; killed on the way, it leaves nothing that looks like one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def quarantine(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint so that no run resumes from it; returns the new name."""
    aside = checkpoint.with_name(checkpoint.name + DAMAGED)
    if aside.exists():
        shutil.rmtree(aside)
    os.replace(checkpoint, aside)
    return aside


def clean_partial(folder: Path) -> None:
    """Removes what an interruption has left half written or half removed."""
    for left_over in (*folder.glob(".*.partial"), *folder.glob(".*.removed")):
        shutil.rmtree(left_over, ignore_errors=True)  # harmless to a reader that is still there
