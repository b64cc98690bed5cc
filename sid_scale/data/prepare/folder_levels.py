"""At which level of a source its samples and class folders lie.

People give the folder above the one that is meant, and data sets come with their splits. One common
folder at the top is stepped into; of splits the training images are taken; whatever is left out is
noted.
"""

from collections import Counter
from collections.abc import Iterable, Set
from pathlib import PurePosixPath
from typing import NamedTuple

from sid_scale.data.prepare.files import (
    LABELS,
    LATENT,
    MOST_NAMED,
    Files,
    SourceError,
    is_labels,
    is_usable,
)
from sid_scale.data.prepare.images import SUFFIXES
from sid_scale.data.prepare.splits import is_other_split, is_training


class Level(NamedTuple):
    """The samples of a source: `root` is the folder ("" or with a slash at its end) that class
    folders lie in; `numbers` are those of the files below it, sorted by name."""

    kind: str  # "latents" or "images"
    root: str
    numbers: list[int]
    class_folders: set[str]  # all folders that lie in root, with samples or without
    notes: list[str]  # what the user should know


def find_level(where: str, files: Files, gone: Set[str] = frozenset()) -> Level:
    """The level that a source's samples are at.

    Args:
        gone: names of samples that are known not to be there any more; they count for the level.

    Raises:
        SourceError: it holds no samples, or both latents and images, or splits of which none is
            clearly for training.
    """
    names = files.names
    latents = [i for i, name in enumerate(names) if name.endswith(LATENT)]
    images = [i for i, name in enumerate(names) if name.lower().endswith(SUFFIXES)]
    if not latents and not images:
        suffixes = ", ".join((LATENT, *SUFFIXES))
        raise SourceError(f"{where} holds neither latents nor images: no file is {suffixes}")
    if latents and images:
        raise SourceError(
            f"{where} holds {len(latents)} {LATENT} files and {len(images)} images: a source "
            "holds the one or the other"
        )
    samples = [names[number] for number in latents or images]
    folders = _all_folders(files)
    root, note = _root(where, [*samples, *gone], folders, set(names))
    numbers = sorted(
        (n for n in latents or images if names[n].startswith(root)), key=names.__getitem__
    )
    if not numbers:
        raise SourceError(f"{where}: {root} is the training split, and holds no samples")
    notes = [*files.notes, *note, *_other_files(where, names)]
    return Level("latents" if latents else "images", root, numbers, _in(root, folders), notes)


def _all_folders(files: Files) -> set[str]:
    """Every folder of a source, by its path."""
    folders: set[str] = set()
    for path in {name.rpartition("/")[0] for name in files.names} | set(files.folders):
        while path and path not in folders:
            folders.add(path)
            path = path.rpartition("/")[0]
    return folders


def _in(root: str, folders: Iterable[str]) -> set[str]:
    """The names of the folders directly in `root`."""
    inside = (folder[len(root) :] for folder in folders if folder.startswith(root))
    return {name for name in inside if name and "/" not in name}


def _root(
    where: str, samples: list[str], folders: set[str], known: Set[str]
) -> tuple[str, list[str]]:
    """The folder that class folders lie in, and notes on why."""
    common = _common_folders(samples)
    roots = ["".join(f"{folder}/" for folder in common[:depth]) for depth in range(len(common) + 1)]
    for depth, root in enumerate(roots):
        if depth < 2 and root + LABELS in known:
            return root, []
        split = _training_split(where, root, _in(root, folders))
        if split is not None:
            left_out = sum(not name.startswith(split) for name in samples)
            return split, [f"{where}: takes {split}; leaves out {left_out:,} samples beside it"]
    alone = _in("", folders) == set(common[:1])
    for depth in range(len(common), 0, -1):
        root = roots[depth]
        # A folder that holds samples is a class itself.
        holds_samples = any("/" not in name[len(root) :] for name in samples)
        if not holds_samples and (is_training(common[depth - 1]) or (depth == 1 and alone)):
            return root, [f"{where}: class folders are those in {root}"]
    return "", []


def _common_folders(names: list[str]) -> list[str]:
    """The folders that all files lie below, from the top."""
    first, last = min(names).split("/")[:-1], max(names).split("/")[:-1]
    common = []
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        common.append(a)
    return common


def _training_split(where: str, root: str, inside: set[str]) -> str | None:
    """The folder of the training split, if `root` is divided in splits."""
    training = sorted(filter(is_training, inside))
    others = sorted(filter(is_other_split, inside))
    if not others or len(training) + len(others) < 2:
        return None
    if len(training) == 1:
        return f"{root}{training[0]}/"
    if not training and len(others) < len(inside):
        return None  # some classes may have such names
    raise SourceError(
        f"{where} holds {', '.join(root + child for child in (*training, *others))}, and "
        f"{len(training) or 'none'} of them is for training; give the one that is meant"
    )


def _other_files(where: str, names: list[str]) -> list[str]:
    """A note on the files that are no samples, by suffix."""
    others = Counter(
        PurePosixPath(name).suffix.lower() or "none"
        for name in sorted(names)
        if not is_usable(name) and not is_labels(name)
    )
    if not others:
        return []
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(MOST_NAMED))
    return [f"{where}: left out for their suffix: {others.total():,} files ({kinds})"]
