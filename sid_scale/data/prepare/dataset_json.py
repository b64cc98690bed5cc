"""EDM's `dataset.json`: the classes of files, {"labels": [[file, class], ...]}; null: none."""

import json
from collections.abc import Mapping

from sid_scale.data.prepare.files import LABELS, Files, SourceError, name_some
from sid_scale.data.prepare.folder_levels import Level


def labels_in_json(
    where: str, files: Files, level: Level, gone: Mapping[str, int]
) -> list[int] | None:
    """Labels by `dataset.json`, whose names are relative to its folder; None: it says that there
    are none. The arguments are those of `find_labels`.

    Raises:
        SourceError: it is damaged, or does not fit the files.
    """
    json_name = level.root + LABELS
    where = f"{where}: {json_name}"
    known: dict[str, int] = {}
    copies = [number for number, name in enumerate(files.names) if name == json_name]
    with files.part(copies).open() as reads:  # parts of a data set may have one each
        parsed = [_parse(where, read()) for read in reads]
    if all(labels is None for labels in parsed):
        return None
    for labels in parsed:
        for name, label in (labels or {}).items():
            if known.setdefault(name, label) != label:
                raise SourceError(f"{where}: {name} is of class {known[name]}, and of {label}")
    if not known:
        raise SourceError(f"{where} holds no labels; --unlabelled makes a set without classes")
    names = [files.names[number][len(level.root) :] for number in level.numbers]
    for name in names:
        if type(known.get(name, 0)) is not int:
            raise SourceError(f"{where}: {name}: class {known[name]!r:.80} is no integer")
    if without := set(names) - known.keys():
        raise SourceError(f"{where}: these files have no class: {name_some(without)}")
    missing = known.keys() - set(names) - {name.removeprefix(level.root) for name in gone}
    if missing:
        raise SourceError(
            f"{where}: these files have a class, but are not there: {name_some(missing)}"
        )
    return [known[name] for name in names]


def _parse(where: str, content: bytes) -> dict[str, int] | None:
    try:
        labels = json.loads(content)["labels"]
        if labels is None:
            return None
        if not isinstance(labels, list):
            raise TypeError("no list")
        found = dict(labels)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(
            f'{where}: not of the form {{"labels": [[file, class], ...]}} '
            f"({type(error).__name__}: {error})"
        ) from error
    for name, label in labels:
        if found[name] != label:
            raise SourceError(f"{where}: {name} is of class {label}, and of {found[name]}")
    return found
