"""Which class each file of a source is of: by EDM2's `dataset.json`, or by ImageNet's folders."""

import json
from pathlib import Path

from sid_scale.data.prepare.files import Files, SourceError

LABELS = "dataset.json"
SPLITS = {"train", "val", "valid", "validation", "test"}


def labels_in_json(path: Path, files: Files, numbers: list[int]) -> list[int]:
    """The classes of the files with these numbers, as `dataset.json` has them.

    Raises:
        SourceError: it is damaged, or does not fit the files.
    """
    where = f"{path}: {LABELS}"
    with files.part([files.names.index(LABELS)]).open() as (read,):
        try:
            labels = json.loads(read())["labels"]
            if not isinstance(labels, list | None):
                raise TypeError("no list")
            known = dict(labels or ())
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(
                f'{where}: not of the form {{"labels": [[file, class], ...]}} '
                f"({type(error).__name__}: {error})"
            ) from error
    if not known:
        raise SourceError(f"{where} holds no labels; --unlabelled makes a set without classes")
    names = [files.names[number] for number in numbers]
    for name in names:
        if type(known.get(name, 0)) is not int:
            raise SourceError(f"{where}: {name}: class {known[name]!r:.80} is no integer")
    _name_some(set(names) - known.keys(), f"{where}: these files have no class")
    _name_some(known.keys() - set(names), f"{where}: these files have a class, but are not there")
    return [known[name] for name in names]


def _name_some(names: set[str], complaint: str) -> None:
    if names:
        some = ", ".join(map(str, sorted(names, key=str)[:5]))
        raise SourceError(f"{complaint}: {some}{' ...' if len(names) > 5 else ''} ({len(names)})")


def labels_by_folder(
    path: Path, files: Files, numbers: list[int]
) -> tuple[list[int], list[int], list[str]]:
    """Files in class folders, their classes, and the folders' names in the order of classes.

    Of a data set's splits only `train` is taken.

    Raises:
        SourceError: a file is in no folder.
    """
    parts = [files.names[number].split("/") for number in numbers]
    depth = 0
    if {part[0] for part in parts if len(part) > 1} <= SPLITS and any(
        part[0] == "train" and len(part) > 2 for part in parts
    ):
        depth = 1
        chosen = [i for i, part in enumerate(parts) if part[0] == "train"]
        numbers, parts = [numbers[i] for i in chosen], [parts[i] for i in chosen]
    for part in parts:
        if len(part) < depth + 2:
            raise SourceError(
                f"{path}: {'/'.join(part)} is in no class folder, and there is no {LABELS}. "
                "Put each class's images in a folder, or --unlabelled makes a set without classes"
            )
    classes = sorted({part[depth] for part in parts})
    number_of = {name: number for number, name in enumerate(classes)}
    return numbers, [number_of[part[depth]] for part in parts], classes
