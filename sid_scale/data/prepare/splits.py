"""Names of a data set's splits: of folders, and in names of archives."""

import re
from collections.abc import Iterable

TRAINING = {"train", "training"}
OTHERS = {"val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"}


def is_training(folder: str) -> bool:
    """Whether a folder is called as a training split: `Train`, `train2017`."""
    return _plain(folder) in TRAINING


def is_other_split(folder: str) -> bool:
    """Whether a folder is called as a split that is not for training."""
    return _plain(folder) in OTHERS


def splits_in(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of names in which a word may tell the split those for training, and those of other splits:
    `ILSVRC2012_img_train.tar`, `val/000.tar`."""
    words = {name: set(re.findall("[a-z]+", name.casefold())) for name in names}
    training = [name for name in words if words[name] & TRAINING]
    others = [name for name in words if words[name] & OTHERS and name not in training]
    return training, others


def _plain(folder: str) -> str:
    return folder.casefold().rstrip("_-0123456789")
