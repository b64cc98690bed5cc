"""Lists of numbers and names as people type them: `88,207,0-9`, `golden retriever`."""

import re
from collections.abc import Sequence
from pathlib import Path

from sid_scale.config.parse import nearest
from sid_scale.errors import UsageError

CLASS_NAMES = "classes.txt"  # in a network folder: one name a line, the first line is class 0
MOST = 10_000_000  # numbers in a list, or images; more is a slip of the finger

LONGEST_HINT = 200  # characters: a thousand classes are too many to list

_NUMBERS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


class ListError(UsageError):
    """A list of numbers or names that cannot be understood; says which part and why."""


def parse_numbers(text: str, what: str) -> list[int]:
    """`"3,0-2,3"` -> [3, 0, 1, 2]: numbers and ranges (both ends count), each number once.

    Args:
        text: the list.
        what: what the numbers are, for messages: "seeds".

    Raises:
        ListError: anything else is in it.
    """
    numbers: list[int] = []
    for part in _parts(text, what):
        span = _span(part, what)
        if span is None:
            raise ListError(f"{what}: {part!r} is neither a number nor a range such as 0-63")
        numbers += span
    return _once(numbers)


def parse_classes(text: str, names: Sequence[str], num_classes: int) -> list[int]:
    """`"88,0-2,golden retriever"` -> [88, 0, 1, 2, 207], each class once.

    Numbers are classes, whatever the names. A name is matched without regard to case; of a name
    with synonyms ("tench, Tinca tinca") each one will do.

    Args:
        text: the list.
        names: of the classes, in order; empty if they have none.
        num_classes: how many classes there are.

    Raises:
        ListError: a number out of range, or a name that is unknown or that two classes have.
    """
    known = _classes_by_name(names)
    classes: list[int] = []
    for part in _parts(text, "classes"):
        span = _span(part, "classes")
        if span is None:
            classes.append(_named(part, known))
            continue
        if span[-1] >= num_classes:
            raise ListError(
                f"classes: {part} is not within the generator's, 0 to {num_classes - 1}"
            )
        classes += span
    return _once(classes)


def read_class_names(folder: str | Path, num_classes: int) -> list[str]:
    """Names in a network folder's `classes.txt`, in the order of classes; [] without that file.

    Raises:
        ListError: it cannot be read, or has another number of lines than there are classes.
    """
    path = Path(folder) / CLASS_NAMES
    if not path.is_file():
        return []
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"{path}: cannot be read: {error}") from error
    if len(names) != num_classes:
        raise ListError(
            f"{path}: {len(names)} names for {num_classes} classes; it holds one name a line, the "
            "first line for class 0"
        )
    return names


def _parts(text: str, what: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ListError(f"{what}: the list is empty")
    return parts


def _span(part: str, what: str) -> range | None:
    """The numbers that `part` stands for; None if it is no number and no range."""
    match = _NUMBERS.fullmatch(part)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ListError(f"{what}: the range {part} runs backwards")
    if last - first >= MOST:
        raise ListError(f"{what}: the range {part} holds more than {MOST:,} numbers")
    return range(first, last + 1)


def _classes_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """Folded name or synonym -> the classes that have it."""
    known: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for word in dict.fromkeys(part.strip().casefold() for part in [name, *name.split(",")]):
            known.setdefault(word, []).append(number)
    return known


def _named(part: str, known: dict[str, list[int]]) -> int:
    if not known:
        raise ListError(
            f"classes: {part!r} is neither a number nor a range such as 0-9, and the generator's "
            f"folder has no {CLASS_NAMES} that would give its classes names"
        )
    found = known.get(part.casefold(), [])
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise ListError(f"classes: {part!r} names several, {numbers}: give the number")
    if not found:
        hint = nearest(part.casefold(), list(known))
        if len(hint) > LONGEST_HINT:
            hint = f"; {CLASS_NAMES} lists them"
        raise ListError(f"classes: none is named {part!r}{hint}")
    return found[0]


def _once(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers))
