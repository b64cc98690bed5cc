"""What the records of a pickled network mean: its modules, and the tensors in them."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sid_scale.pickles.opcodes import PickleError
from sid_scale.pickles.reader import Record
from sid_scale.pickles.values import (
    IDENTITY,
    PERSISTENT,
    PickledTensor,
    mapping,
    read_tensor,
    should_be,
)

DEEPEST_MODULE = 16
MOST_PLACES = 10_000  # names in all modules together; EDM2-XXL has some 600
_NAME = re.compile(r"\w{1,64}", re.ASCII)


@dataclass(frozen=True, eq=False)
class PickledObject:
    """An object of EDM2's persistent classes, torch's Identity or container of modules."""

    class_name: str
    state: dict[str, Any]  # its __dict__


def read_object(value: Any, what: str) -> PickledObject:
    """An object from its record; `what` is for errors. The class's source is not looked at.

    Raises:
        PickleError: the record is of something else.
    """
    with should_be("an object of a persistent class or a container of modules", what):
        if value.kind == PERSISTENT:
            (meta,) = value.arguments
            name, state = meta["class_name"], meta["state"]
            if meta["type"] != "class" or not name.isidentifier() or not name.isascii():
                raise ValueError
        elif value.kind.startswith("torch.nn.modules.container.") or value.kind == IDENTITY:
            name, state = value.kind, value.state
        else:
            raise TypeError
    return PickledObject(name, mapping(state, f"{what}: its state"))


def read_tensors(module: Any, where: str) -> dict[str, PickledTensor]:
    """Parameters and buffers of a module and of all in it, under their state dict's names.

    Raises:
        PickleError: something in it is no module, or no tensor, or is there twice, or there are
            far too many.
    """
    found: dict[str, PickledTensor] = {}
    places = 0
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        prefix, record = waiting.pop()
        what = f"{where}: {prefix.removesuffix('.') or 'the network'}"
        if id(record) in seen or prefix.count(".") > DEEPEST_MODULE:
            raise PickleError(f"{what} is a module within itself, in two places, or too deep")
        seen.add(id(record))
        state = read_object(record, what).state
        places += _count_places(state, what)
        if places > MOST_PLACES:  # modules may share what they hold: a small file, endless names
            raise PickleError(
                f"{where}: more than {MOST_PLACES} tensors and modules, far more than any network "
                "has. Take the file from its publisher"
            )
        for name, value in _tensor_records(state, what):
            found[prefix + name] = read_tensor(value, f"{where}: {prefix}{name}")
        for name, child in _entries(state, "_modules", what):
            waiting.append((f"{prefix}{name}.", child))
    return found


def _count_places(state: dict[str, Any], what: str) -> int:
    """How many names a module holds, in all that is gone through to read it."""
    held = ("_parameters", "_buffers", "_modules")
    count = sum(len(mapping(state.get(name), f"{what}: {name}")) for name in held)
    return 1 + count + len(_passing_names(state, what))


def _passing_names(state: dict[str, Any], what: str) -> Collection[Any]:
    """Names of the buffers that a state dict leaves out."""
    passing = state.get("_non_persistent_buffers_set", Record("builtins.set"))
    with should_be("a set of names", f"{what}: _non_persistent_buffers_set"):
        names = passing.arguments[0] if passing.arguments else passing.items
        if not isinstance(names, list | tuple):
            raise TypeError
        return names


def _tensor_records(state: dict[str, Any], what: str) -> Iterator[tuple[str, Any]]:
    yield from _entries(state, "_parameters", what)
    left_out = {name for name in _passing_names(state, what) if isinstance(name, str)}
    for name, value in _entries(state, "_buffers", what):
        if name not in left_out:
            yield name, value


def _entries(state: dict[str, Any], attribute: str, what: str) -> Iterator[tuple[str, Any]]:
    """What a module holds under an attribute, without the places that hold nothing."""
    for name, value in mapping(state.get(attribute), f"{what}: {attribute}").items():
        if not _NAME.fullmatch(name):
            raise PickleError(f"{what}: {attribute} holds {name[:64]!a}, which is no name")
        if value is not None:
            yield name, value
