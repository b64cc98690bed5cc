"""YAML settings -> frozen dataclasses, with one clear error for each mistake.

Nothing here knows what the settings mean: `config/run.py` says that.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sid_scale.errors import SidScaleError

T = TypeVar("T")


class ConfigError(SidScaleError):
    """A setting that cannot be used; the message says which, why and what would do."""


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
    return _merge(read_yaml(path.parent / str(base)), settings)


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
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a group of settings")
        settings = inner
    settings[last] = value


def build(cls: type[T], settings: Any, where: str = "") -> T:
    """A dataclass from settings; `where` is the dotted path to them, with a dot at its end.

    Raises:
        ConfigError: unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"{where.rstrip('.')}: expected a group of settings, got {settings!r}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    for key in settings:
        if key not in fields:
            raise ConfigError(f"unknown key {where}{key}{nearest(str(key), list(fields))}")
    values = {}
    for name, f in fields.items():
        if name in settings:
            values[name] = _convert(hints[name], settings[name], f"{where}{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}{name} is missing and has no default")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, f"{where}.")
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        hint_text = nearest(str(value), [str(a) for a in arguments])
        choices = ", ".join(str(a) for a in arguments)
        raise ConfigError(f"{where}: {value!r} is none of {choices}{hint_text}")
    if origin is tuple and arguments[-1] is Ellipsis:
        # As YAML's list, or as it is typed on a command line: a,b
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            parts = [part.strip() if isinstance(part, str) else part for part in parts]
            return tuple(_convert(arguments[0], part, where) for part in parts)
    elif origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    if hint in (int, float) and isinstance(value, str):
        value = _number(value)  # YAML reads 5e-5 as text, and people write 2_000_000
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, hint if origin is None else origin) and isinstance(value, bool) == (
        hint is bool
    ):
        return value
    kind = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: expected {kind}, got {value!r}")


def _number(text: str) -> Any:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return text


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
