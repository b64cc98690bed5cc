"""The settings that name networks: folders, or names on the hub.

A run works with folders. `local_networks` and `networks_on_every_node` put them in place of names.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sid_scale.config.fields import OnHub
from sid_scale.hub.folders import local_folders, on_every_node
from sid_scale.hub.names import is_name, name_of

T = TypeVar("T")


def map_networks(settings: T, change: Callable[[str, str, OnHub], str], prefix: str = "") -> T:
    """Settings in which `change(key, value, what)` replaces each that names a network."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(settings, field.name)
        marks = list(_marks(hints[field.name]))
        if dataclasses.is_dataclass(value):
            changed[field.name] = map_networks(value, change, f"{key}.")
        elif marks and isinstance(value, dict):
            changed[field.name] = {k: change(f"{key}.{k}", v, marks[0]) for k, v in value.items()}
        elif marks and value is not None:
            changed[field.name] = change(key, value, marks[0])
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def _marks(hint: Any) -> Iterator[OnHub]:
    """Of a type, or of its parts."""
    for part in (*typing.get_args(hint), *getattr(hint, "__metadata__", ())):
        if isinstance(part, OnHub):
            yield part
        else:
            yield from _marks(part)


def local_networks(settings: T) -> T:
    """Settings in which names on the hub are replaced by folders, which are fetched.

    What is neither there nor such a name is left as it is.

    Raises:
        HubError: a name leads nowhere; says which setting.
    """
    return _with(settings, local_folders(_maybe_on_hub(settings)))


def networks_on_every_node(settings: T) -> T:
    """`local_networks` for ranks: one of each node fetches. Collective."""
    named = _maybe_on_hub(settings)
    return _with(settings, on_every_node(named)) if named else settings


def named_as_on_hub(settings: T) -> T:
    """Settings in which what is in the hub's cache has its name on the hub, with the commit."""
    return map_networks(settings, lambda key, value, what: name_of(value) or value)


def _maybe_on_hub(settings: Any) -> dict[str, str]:
    """The settings that may be names on the hub; the same on all ranks, whatever is there."""
    named: dict[str, str] = {}

    def note(key: str, value: str, what: OnHub) -> str:
        if is_name(value):
            named[key] = value
        return value

    map_networks(settings, note)
    return named


def _with(settings: T, found: Mapping[str, Path]) -> T:
    def change(key: str, value: str, what: OnHub) -> str:
        place = found.get(key)
        if place is None or str(place) == value:
            return value
        return str(place / what.file)

    return map_networks(settings, change)
