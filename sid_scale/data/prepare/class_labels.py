"""Which class each file of a source is of: by EDM's `dataset.json`, by WebDataset's `.cls` files,
or by ImageNet's folders, one a class."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sid_scale.data.prepare.dataset_json import labels_in_json
from sid_scale.data.prepare.files import (
    CLASS,
    LABELS,
    Files,
    SourceError,
    first_repeated,
    name_some,
)
from sid_scale.data.prepare.folder_levels import Level
from sid_scale.data.prepare.splits import is_other_split, is_training

MOST_CLASSES = 1_000_000  # more is no class, but a number of another meaning
_NUMBER = re.compile("[0-9]+")
_DIGITS = re.compile(r"(\d+)")


class ClassCount(NamedTuple):
    """How many classes there must be, and what says so."""

    number: int
    origin: str  # "--num-classes", "the network in FOLDER"


class Labels(NamedTuple):
    """Classes of a level's files, in their order."""

    labels: list[int]
    num_classes: int
    folders: list[str]  # names of the class folders, if they are what labels come from
    notes: list[str]


def find_labels(
    where: str,
    files: Files,
    level: Level,
    expected: ClassCount | None,
    empty_classes: bool,
    gone: Mapping[str, int],
) -> Labels:
    """The classes of a level's files.

    Args:
        empty_classes: a class folder without samples is a class all the same.
        gone: classes of samples that are known not to be there any more, by the files' names.

    Raises:
        SourceError: they are damaged, do not fit the files, or leave more than one reading.
    """
    if level.root + LABELS in files.names:
        in_json = labels_in_json(where, files, level, gone)
        if in_json is None:
            return _no_labels(where, level, expected)
        labels = in_json
    elif beside := _class_files(files, level):
        labels = _beside(where, files, level, beside)
    else:
        _refuse_deeper_json(where, files, level)
        return _by_folder(where, files, level, expected, empty_classes, gone)
    number = expected.number if expected else max([*labels, *gone.values()]) + 1
    for label, file in zip(labels, level.numbers, strict=True):
        if not 0 <= label < min(number, MOST_CLASSES):
            most = min(number, MOST_CLASSES) - 1
            reason = f", and {expected.origin} has {number} classes" if expected else ""
            raise SourceError(
                f"{where}: {files.names[file]}: class {label} is not in 0..{most}{reason}"
            )
    empty = set(range(number)) - set(labels)
    notes = [f"{where}: classes without a sample: {name_some(empty)}"] if empty else []
    return Labels(labels, number, [], notes)


# --- dataset.json -------------------------------------------------------------------------


def _no_labels(where: str, level: Level, expected: ClassCount | None) -> Labels:
    """What `dataset.json` says with `"labels": null`.

    Raises:
        SourceError: classes are wanted.
    """
    json_name = level.root + LABELS
    if expected:
        raise SourceError(
            f"{where}: {json_name} says that there are no labels, but {expected.origin} has "
            f"{expected.number} classes; --unlabelled makes a set without"
        )
    notes = [f"{where}: {json_name} says that there are no labels: a set without classes"]
    return Labels([0] * len(level.numbers), 0, [], notes)


def _refuse_deeper_json(where: str, files: Files, level: Level) -> None:
    below = [n for n in files.names if n.startswith(level.root) and n.endswith(f"/{LABELS}")]
    if below:
        folders = name_some(name.removesuffix(LABELS) for name in below)
        raise SourceError(
            f"{where}: {LABELS} lies in {folders}, not at the top: give that folder as the source "
            "(of an archive: pack what is in that folder)"
        )
    if level.kind == "latents":
        raise SourceError(f"{where}: there is no {LABELS} that says what class a file is of")


# --- WebDataset ---------------------------------------------------------------------------


def _class_files(files: Files, level: Level) -> dict[str, int]:
    """The `.cls` files by name, each with its number; none if no sample has one."""
    number_of = {name: n for n, name in enumerate(files.names) if name.endswith(CLASS)}
    if not number_of:
        return {}
    has_one = any(_class_file(files.names[number]) in number_of for number in level.numbers)
    return number_of if has_one else {}


def _beside(where: str, files: Files, level: Level, number_of: Mapping[str, int]) -> list[int]:
    """Labels by the `.cls` file beside each sample."""
    beside = [_class_file(files.names[number]) for number in level.numbers]
    if without := set(beside) - number_of.keys():
        raise SourceError(
            f"{where}: some samples have a {CLASS}, these do not: {name_some(without)}"
        )
    if twice := first_repeated(beside):
        raise SourceError(f"{where}: {twice} is the class of several images; leave one of each")
    labels = []
    with files.part([number_of[name] for name in beside]).open() as reads:
        for name, read in zip(beside, reads, strict=True):
            content = read()
            if not re.fullmatch(rb"\s*\d{1,9}\s*", content):
                raise SourceError(f"{where}: {name} holds {content[:20]!r}, not a class")
            labels.append(int(content))
    return labels


def _class_file(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.')[0]}{CLASS}"


# --- class folders ------------------------------------------------------------------------


def _by_folder(
    where: str,
    files: Files,
    level: Level,
    expected: ClassCount | None,
    empty_classes: bool,
    gone: Mapping[str, int],
) -> Labels:
    """Labels by class folders, in the order of their numbers or names."""
    below = [files.names[number][len(level.root) :].split("/") for number in level.numbers]
    for parts in below:
        if len(parts) < 2:
            raise SourceError(
                f"{where}: {level.root}{parts[0]} is in no class folder, and there is no {LABELS}. "
                "Put each class's images in a folder, or --unlabelled makes a set without classes"
            )
    filled = {parts[0] for parts in below}
    filled |= {name[len(level.root) :].split("/")[0] for name in gone}
    found = filled | level.class_folders
    if (empty := found - filled) and not empty_classes:
        raise SourceError(
            f"{where}: class folders without a sample: {name_some(empty)}. The classes behind them "
            "would move up: fill or remove these folders, or give --empty-classes to keep them as "
            "classes without samples"
        )
    numbers_only = all(map(_NUMBER.fullmatch, found))
    if numbers_only:
        classes, notes = _by_number(where, found, expected, empty_classes), []
    else:
        classes, notes = sorted(found), _order_notes(where, found)
    notes += _check_depth(where, level.root, below, len(classes), expected)
    if expected and expected.number != len(classes):
        message = f"{where}: {len(classes)} classes, but {expected.origin} has {expected.number}"
        if len(classes) > 1:
            raise SourceError(
                f"{message}. Give the folder that holds all class folders, or a {LABELS} that "
                "says the class of each file"
            )
        notes.append(f"{message}: all samples are of class 0, and a run needs as many classes")
    number_of = {name: number for number, name in enumerate(classes)}
    return Labels([number_of[parts[0]] for parts in below], len(classes), classes, notes)


def _by_number(
    where: str, names: set[str], expected: ClassCount | None, empty_classes: bool
) -> list[str]:
    """Class folders that are numbers, each at its number; a class without one has its number."""
    by_number: dict[int, str] = {}
    for name in sorted(names):
        if (other := by_number.setdefault(int(name), name)) != name:
            raise SourceError(f"{where}: class folders {other} and {name} are one number")
    count = max(by_number) + 1
    if empty_classes and expected:
        count = max(count, expected.number)
    if count > MOST_CLASSES:
        raise SourceError(
            f"{where}: class folder {by_number[max(by_number)]} would be a class of this number; "
            "give folders other names than numbers, or a dataset.json"
        )
    missing = set(range(count)) - by_number.keys()
    if missing and not empty_classes:
        raise SourceError(
            f"{where}: class folders named by numbers are the classes of these numbers, from 0 on, "
            f"and these are missing: {name_some(missing)}. Rename the folders, or give "
            "--empty-classes to have classes without samples"
        )
    return [by_number.get(number, str(number)) for number in range(count)]


def _order_notes(where: str, names: set[str]) -> list[str]:
    """What a user may have meant otherwise about the order of class folders."""
    as_text = sorted(names)
    as_people_count = sorted(
        names, key=lambda n: [int(p) if p.isdecimal() else p.casefold() for p in _DIGITS.split(n)]
    )
    for number, (here, there) in enumerate(zip(as_text, as_people_count, strict=True)):
        if here != there:
            return [
                f"{where}: class folders are numbered in the order of their names as text: "
                f"class {number} is {here}, not {there}"
            ]
    if any(map(_NUMBER.fullmatch, names)):
        return [f"{where}: some class folders are named by numbers and some are not: all are text"]
    return []


def _check_depth(
    where: str, root: str, below: list[list[str]], count: int, expected: ClassCount | None
) -> list[str]:
    """Refuses class folders that seem to be a level too high; if their number is as it must be, a
    note says so."""
    inner: dict[str, set[str]] = {}
    for parts in below:
        if len(parts) > 2:
            inner.setdefault(parts[0], set()).add("/".join(parts[1:-1]))
    several = [name for name, folders in inner.items() if len(folders) > 1]
    if not several:
        return []
    first = min(several)
    folders = {folder for name in several for folder in inner[name]}
    if any(map(is_training, folders)) and any(map(is_other_split, folders)):
        raise SourceError(
            f"{where}: {root}{first} holds splits: {name_some(inner[first])}. Give a source of the "
            "training images, with class folders in it"
        )
    what = f"{where}: this makes {name_some(several)} class folders, whose images lie in folders of"
    what += f" their own: {name_some(inner[first])}"
    if expected and expected.number == count:
        return [what]
    raise SourceError(
        f"{what}. Give the folder that holds the class folders, {where}/{root}{first} perhaps; if "
        f"these are the classes, say --num-classes {count}"
    )
