"""At which level of a source its samples and class folders lie.

People give the folder above the one that is meant, and data sets come with their splits. One common
folder at the top is stepped into; of splits the training images are taken; whatever is left out is
noted.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from sid_scale.data.prepare.files import Files, SourceError
from sid_scale.data.prepare.images import SUFFIXES

LATENT = ".npy"
LABELS = "dataset.json"  # EDM2's
CLASS = ".cls"  # WebDataset's: a file beside each sample
TRAINING = {"train", "training"}
OTHER_SPLITS = {"val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"}
MOST_NAMED = 5


class Level(NamedTuple):
    """The samples of a source: `root` is the folder ("" or with a slash at its end) that class
    folders lie in; `numbers` are those of the files below it, sorted by name."""

    kind: str  # "latents" or "images"
    root: str
    numbers: list[int]
    notes: list[str]  # what the user should know


def find_level(where: str, files: Files) -> Level:
    """The level that a source's samples are at.

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
    usable = latents or images
    root, note = _root(where, [names[number] for number in usable], files)
    numbers = sorted((n for n in usable if names[n].startswith(root)), key=names.__getitem__)
    if not numbers:
        raise SourceError(f"{where}: {root} is the training split, and holds no samples")
    return Level(
        "latents" if latents else "images", root, numbers, [*note, *_other_files(where, names)]
    )


def is_usable(name: str) -> bool:
    """Whether a file is a sample, by its name."""
    return name.endswith(LATENT) or name.lower().endswith(SUFFIXES)


def name_some(names: Iterable[object]) -> str:
    """The first names of many, and how many there are."""
    ordered = sorted(map(str, names))
    dots = " ..." if len(ordered) > MOST_NAMED else ""
    return f"{', '.join(ordered[:MOST_NAMED])}{dots} ({len(ordered)})"


def _root(where: str, samples: list[str], files: Files) -> tuple[str, list[str]]:
    """The folder that class folders lie in, and notes on why."""
    common = _common_folders(samples)
    known = set(files.names)
    for depth in range(len(common) + 1):
        root = "".join(f"{folder}/" for folder in common[:depth])
        if depth < 2 and root + LABELS in known:
            return root, []
        split = _training_split(where, root, samples, files.folders)
        if split is not None:
            left_out = sum(not name.startswith(split) for name in samples)
            return split, [f"{where}: takes {split}; leaves out {left_out:,} samples beside it"]
    alone = _children(samples, files.folders, "") == set(common[:1])
    for depth in range(len(common), 0, -1):
        root = "".join(f"{folder}/" for folder in common[:depth])
        holds_samples = any("/" not in name[len(root) :] for name in samples)
        # A folder that holds samples is a class itself.
        if not holds_samples and (_split(common[depth - 1]) in TRAINING or (depth == 1 and alone)):
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


def _children(names: Iterable[str], folders: Iterable[str], root: str) -> set[str]:
    """The folders directly in `root`, with samples or without."""
    below = (name[len(root) :].split("/") for name in names if name.startswith(root))
    empty = (folder[len(root) :].split("/")[0] for folder in folders if folder.startswith(root))
    return {parts[0] for parts in below if len(parts) > 1} | {folder for folder in empty if folder}


def _training_split(where: str, root: str, names: list[str], folders: list[str]) -> str | None:
    """The folder of the training split, if `root` is divided in splits."""
    children = _children(names, folders, root)
    training = sorted(child for child in children if _split(child) in TRAINING)
    others = sorted(child for child in children if _split(child) in OTHER_SPLITS)
    if not others or len(training) + len(others) < 2:
        return None
    if len(training) == 1:
        return f"{root}{training[0]}/"
    if not training and len(others) < len(children):
        return None  # some classes may have such names
    raise SourceError(
        f"{where} holds {', '.join(root + child for child in (*training, *others))}, and "
        f"{len(training) or 'none'} of them is for training; give the one that is meant"
    )


def _split(folder: str) -> str:
    """A folder's name as that of a split: `Train`, `train2017` -> `train`."""
    return folder.casefold().rstrip("_-0123456789")


def _other_files(where: str, names: list[str]) -> list[str]:
    """A note on the files that are no samples, by suffix."""
    others = Counter(
        PurePosixPath(name).suffix.lower() or "none"
        for name in sorted(names)
        if not is_usable(name) and not name.endswith((LABELS, CLASS))
    )
    if not others:
        return []
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(MOST_NAMED))
    return [f"{where}: left out for their suffix: {others.total():,} files ({kinds})"]
