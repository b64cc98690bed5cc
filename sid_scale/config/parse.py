"""YAML settings -> frozen dataclasses, with one clear error for each mistake.

Nothing here knows what the settings mean: the dataclasses say that, with a limit at each field
(fields.py); pydantic checks them.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from sid_scale.errors import SidScaleError
from sid_scale.paths import expand

T = TypeVar("T")
UNKNOWN_KEY = "unexpected_keyword_argument"  # pydantic's name of this fault


class ConfigError(SidScaleError):
    """A setting that cannot be used; the message says which, why and what would do."""

    exit_status = 2


def dump_yaml(config: Any) -> str:
    """A dataclass as YAML that `read_yaml` and `build` read back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings in a file, laid over those of the file it `extends` (a path beside it).

    Raises:
        ConfigError: no such file, no YAML, or no settings in it.
    """
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config: {path} holds no `key: value` settings")
    base = settings.pop("extends", None)
    if base is None:
        return settings
    try:
        base = expand(str(base))
    except ValueError as error:
        raise ConfigError(f"config: {path}: extends: {error}") from error
    return _merge(read_yaml(path.parent / base), settings)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Lays one `key=value` (`a.b=value` reaches into groups) over `settings`, in place.

    Raises:
        ConfigError: not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    *path, last = key.strip().split(".")
    for name in path:
        inner = settings.get(name)
        if inner is None:  # not there, or a group that is switched off
            inner = settings[name] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a group of settings")
        settings = inner
    settings[last] = value


def build(cls: type[T], settings: Any, where: str = "") -> T:
    """A dataclass from settings; `where` is the dotted path to them, with a dot at its end.

    Raises:
        ConfigError: unknown or missing key, or a value of the wrong type or out of range; names
            one such key.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"{where.rstrip('.')}: expected a group of settings, got {settings!r}")
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"unknown key {where}{key}{nearest(str(key), _names(cls))}")
    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as error:
        # An unknown key first: one that is missing may only be misspelt.
        faults = error.errors(include_url=False)
        fault = min(faults, key=lambda fault: fault["type"] != UNKNOWN_KEY)
        raise ConfigError(_message(cls, fault, where)) from None


def _message(cls: type, fault: Any, where: str) -> str:
    """One of pydantic's faults as a line that says where and what."""
    names = [str(part) for part in fault["loc"] if _is_key(part)]
    key, value, kind = where + ".".join(names), fault["input"], fault["type"]
    limits = fault.get("ctx", {})
    if kind == UNKNOWN_KEY:
        # Any text can stand here, also one that `_is_key` takes for the name of a type.
        *groups, unknown = (str(part) for part in fault["loc"])
        hint = nearest(unknown, _names(_group(cls, groups)))
        return f"unknown key {where}{'.'.join([*groups, unknown])}{hint}"
    if kind == "missing" and isinstance(value, dict | ArgsKwargs):
        return f"{key} is missing and has no default"
    if kind == "greater_than_equal":
        return f"{key}: {value} is below {limits['ge']:g}"
    if kind == "greater_than":
        return f"{key}: {value} is not above {limits['gt']:g}"
    if kind == "less_than_equal":
        return f"{key}: {value} is above {limits['le']:g}"
    if kind == "less_than":
        return f"{key}: {value} is not below {limits['lt']:.3g}"
    if kind == "literal_error":
        choices = _choices(cls, names)
        return f"{key}: {value!r} is none of {', '.join(choices)}{nearest(str(value), choices)}"
    if kind == "value_error":  # a validator's own words
        return f"{key}: {limits['error']}, got {value!r}"
    if kind == "dataclass_type":
        return f"{key}: expected a group of settings, got {value!r}"
    wanted = next((word for word in _WANTED if word in kind), None)
    return f"{key}: expected {_WANTED.get(wanted or '', 'another value')}, got {value!r}"


# Part of the name of pydantic's fault -> what is wanted.
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "dict": "a group of settings",
    "missing": "a longer list",
    "too_long": "a shorter list",
}


def _is_key(part: int | str) -> bool:
    """Whether a part of a fault's place is a key, not a position or the name of a type."""
    return isinstance(part, str) and part.isidentifier() and part not in ("float", "int", "str")


def _group(cls: type, names: Sequence[str]) -> type:
    """The class of the group of settings that `names` lead to."""
    for name in names:
        cls = unless_null(typing.get_type_hints(cls)[name])
    return cls


def unless_null(hint: Any) -> Any:
    """The type of a setting that may be null, where it is not; another type as it is."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return kinds[0] if is_union and len(kinds) == 1 else hint


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _choices(cls: type, names: Sequence[str]) -> list[str]:
    hint = typing.get_type_hints(_group(cls, names[:-1]))[names[-1]]
    return [str(choice) for choice in typing.get_args(unless_null(hint))]


def nearest(name: str, candidates: Sequence[str]) -> str:
    """The end of an error message: what `name` was probably meant to be."""
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(candidates)}" if candidates else ""


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
