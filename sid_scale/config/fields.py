"""Types of settings: a number, a share, a path ..., each with its limits.

YAML and command lines give numbers as text, too: YAML reads `5e-5` so, and people write
`2_000_000`. `true` is no number and 1 no truth value; infinity and NaN are refused.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
)

from sid_scale.paths import expand

# Of every group of settings. A field's description is the text below it.
SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value.replace("_", ""))
            except ValueError:
                continue
    return value


def _parts(value: Any) -> Any:
    """`a,b`, as a list is typed on a command line."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _activations(value: Any) -> Any:
    """One of the three words, or resolutions as a tuple: `64` and `64,32` are lists, too."""
    if isinstance(value, str) and value in ("keep", "checkpoint", "offload"):
        return value
    parts = [value] if isinstance(value, int) else _parts(value)
    if isinstance(parts, list | tuple) and parts:
        numbers = tuple(part if isinstance(part, bool) else _number(part) for part in parts)
        if all(type(number) is int and number > 0 for number in numbers):
            return numbers
    raise ValueError("expected keep, checkpoint, offload or a list of resolutions")


def _different_widths(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError("expected two or more different widths")
    return values


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low >= high:
        raise ValueError("the second number should be above the first")
    return bounds


def _paths(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(expand, values))


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number), AllowInfNan(False)]
Flag = Annotated[bool, Strict()]
Texts = Annotated[tuple[str, ...], BeforeValidator(_parts)]


@dataclass(frozen=True)
class OnHub:
    """Marks a setting that names a network: what is there, or a name on the hub."""

    file: str = ""  # that is wanted of a model on the hub; empty: its folder


Location = Annotated[str, AfterValidator(expand)]  # a path, a URL or a name
NetworkLocation = Annotated[Location, OnHub()]  # a folder, or a name on the hub
WeightsLocation = Annotated[Location, OnHub("model.safetensors")]  # a file, or a name on the hub
Locations = Annotated[Texts, AfterValidator(_paths)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], BeforeValidator(_parts)]

# How a network's activations wait for its backward pass; a tuple: resolutions of the blocks that
# are checkpointed.
Activations = Annotated[
    Literal["keep", "checkpoint", "offload"] | tuple[int, ...], PlainValidator(_activations)
]
Steps = Annotated[Literal[1, 2, 4], BeforeValidator(_number)]
Natural = Annotated[Integer, Field(ge=0)]  # 0, 1, 2, ...
Positive = Annotated[Integer, Field(ge=1)]
PositiveNumber = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
RelativeWidth = Annotated[Number, Field(gt=0, lt=12**-0.5)]
RelativeWidths = Annotated[
    tuple[RelativeWidth, ...], BeforeValidator(_parts), AfterValidator(_different_widths)
]
Interval = Annotated[  # from and to
    tuple[NotNegative, PositiveNumber], BeforeValidator(_parts), AfterValidator(_rising)
]
Share = Annotated[Number, Field(ge=0, le=1)]
