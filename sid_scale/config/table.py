"""The table of all settings: `python -m sid_scale.config.table > docs/configuration.md`.

Made of the dataclasses themselves: names, types, defaults, limits, and the text below each field.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from sid_scale.config.parse import unless_null
from sid_scale.config.run import RunConfig
from sid_scale.methods.settings import OBJECTIVES

HEAD = """# Configuration

All keys of a run's YAML. A key with dots is nested (`log: {samples: 36}`), or an override on the
command line (`log.samples=36`). A file may begin with `extends: other.yaml` and state only what
differs; `--config` takes a file or a preset's name (`sid-scale presets`). An unknown key, a wrong
type or a value out of range ends the run before anything is built, with the nearest key named.

This page is made by `python -m sid_scale.config.table`; a test compares.
"""
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def page() -> str:
    """The whole page, Markdown."""
    parts = [HEAD, "## Every method\n", _table(RunConfig, "")]
    methods: dict[type, list[str]] = {}
    for method, objective in OBJECTIVES.items():
        methods.setdefault(objective, []).append(method)
    for objective, names in methods.items():
        parts.append(f"## `objective` of {', '.join(names)}\n")
        if (base := objective.__base__) in methods:
            parts.append(f"That of {', '.join(methods[base])}, and:\n")
        parts.append(_table(objective, "objective."))
    return "\n".join(parts)


def _table(group: type, prefix: str) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in _rows(group, prefix)]
    return "\n".join(lines) + "\n"


def _rows(group: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """A row for each setting of a group; those that it inherits are left out."""
    hints = typing.get_type_hints(group, include_extras=True)
    inherited = getattr(group.__base__, "__pydantic_fields__", {})
    for name, field in group.__pydantic_fields__.items():
        if name in inherited:
            continue
        inner = unless_null(hints[name])
        if inner is hints[name] and dataclasses.is_dataclass(inner):
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        meaning = " ".join((field.description or "").split())
        kind = ", ".join([_kind(hints[name]), *_limits(hints[name])])
        default = f"`{_plain(field.get_default(call_default_factory=True))}`"
        default = "required" if field.is_required() else default
        yield f"`{prefix}{name}`", kind, default, meaning
        if dataclasses.is_dataclass(inner):  # a group that may be null
            yield from _rows(inner, f"{prefix}{name}.")


def _kind(hint: Any) -> str:
    """The type in a reader's words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _kind(a) for a in arguments)
    if origin is typing.Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin is tuple:
        return "list" if Ellipsis in arguments else f"{len(arguments)} numbers"
    if origin is dict:
        return f"by name: {_kind(arguments[1])}"
    words = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    return words.get(hint, "group")


def _limits(hint: Any) -> Iterator[str]:
    """Each limit of a type, in words."""
    for argument in typing.get_args(hint):
        for limit in getattr(argument, "metadata", [argument]):
            for sign, word in LIMITS.items():
                if (bound := getattr(limit, sign, None)) is not None:
                    yield f"{word} {bound:.4g}"
        if typing.get_origin(argument) is typing.Annotated:
            yield from _limits(argument)


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else f"{value}"


if __name__ == "__main__":
    print(page(), end="")
