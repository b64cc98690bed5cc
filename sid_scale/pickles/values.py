"""What a pickle's contents should be: dicts, numbers, arrays, the tensors of a network."""

import re
from typing import Any

import numpy as np

from sid_scale.pickles.reader import PickledObject, PickledTensor, PickleError

_LONGEST = 1024  # bytes of numbers in a list
_NAME = re.compile(r"\w{1,64}", re.ASCII)


def _wrong(expected: str, what: str) -> PickleError:
    return PickleError(f"{what} should be {expected}, but has another form")


def mapping(value: Any, what: str) -> dict[str, Any]:
    """A dict; `what` is for the error.

    Raises:
        PickleError: it is something else.
    """
    if not isinstance(value, dict):
        raise _wrong("a dict", what)
    return value


def number(value: Any, what: str) -> int | float:
    """A number or bool, Python's or numpy's.

    Raises:
        PickleError: it is something else.
    """
    if isinstance(value, PickledTensor) and value.shape == ():
        value = value.load().item()
    if not isinstance(value, int | float):
        raise _wrong("a number", what)
    return value


def numbers(value: Any, what: str) -> list[int | float]:
    """Numbers in a list, a tuple or an array of one dimension.

    Raises:
        PickleError: it is something else.
    """
    is_array = isinstance(value, PickledTensor) and len(value.shape) == 1
    if is_array and value.stored_bytes <= _LONGEST:
        value = value.load().tolist()
    if not isinstance(value, list | tuple):
        raise _wrong("a list of numbers", what)
    return [number(item, what) for item in value]


def array(value: Any, what: str) -> np.ndarray:
    """An array of numbers, of any shape.

    Raises:
        PickleError: it is something else.
    """
    if not isinstance(value, PickledTensor) or value.dtype == "BF16":
        raise _wrong("an array of numbers", what)
    return value.load().numpy()


def as_object(value: Any, what: str) -> PickledObject:
    """An object of a persistent class or a module of torch.

    Raises:
        PickleError: it is something else.
    """
    if not isinstance(value, PickledObject):
        raise _wrong("an object of a persistent class or a module of torch", what)
    return value


def read_tensors(module: Any, where: str, prefix: str = "") -> dict[str, PickledTensor]:
    """Parameters and buffers of a module and of all in it, under their state dict's names.

    Raises:
        PickleError: something in it is no module or no tensor, or has an impossible name.
    """
    what = f"{where}: {prefix.removesuffix('.') or 'the network'}"
    state = as_object(module, what).state
    held = {
        kind: mapping(state.get(kind), f"{what}: {kind}")
        for kind in ("_parameters", "_buffers", "_modules")
    }
    for kind, entries in held.items():
        for name in entries:
            if not _NAME.fullmatch(name):
                raise PickleError(f"{what}: {kind} holds {name[:64]!a}, which is no name")
    names = state.get("_non_persistent_buffers_set", [])
    if not isinstance(names, list):
        raise _wrong("a set of names", f"{what}: _non_persistent_buffers_set")
    left_out = {name for name in names if isinstance(name, str)}
    found: dict[str, PickledTensor] = {}
    for name, value in {**held["_parameters"], **held["_buffers"]}.items():
        if value is None or (name in held["_buffers"] and name in left_out):
            continue
        if not isinstance(value, PickledTensor):
            raise _wrong("a tensor", f"{where}: {prefix}{name}")
        found[prefix + name] = value
    for name, child in held["_modules"].items():
        if child is not None:
            found |= read_tensors(child, where, f"{prefix}{name}.")
    return found
