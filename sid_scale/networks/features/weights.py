"""Pretrained weights from a safetensors file that may hold more than is needed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

COUNTER = ".num_batches_tracked"  # of a normalisation's training; a file has it or not
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
MOST_FAULTS = 4  # in one message


def load_weights(module: nn.Module, file: Path) -> None:
    """Copies a file's weights into a module.

    The file holds all of the module's weights, under their names, in one of the dtypes `FLOATS`.
    It may hold other modules beside, such as a classifier's head, and these are not read.

    Raises:
        ValueError: the file is missing or damaged, or its weights are not this module's; lists up
            to four that are missing, unknown, of another shape or dtype, or not finite.
        OSError: it cannot be read.
    """
    if not file.exists():
        raise ValueError("no such file")
    if not file.is_file():  # opening a pipe may last for ever
        raise ValueError("not a file")
    expected = module.state_dict()
    try:
        with safe_open(file, framework="pt") as weights:
            _refuse(list(_faults(expected, weights)))
            held = set(weights.keys())
            state = {name: weights.get_tensor(name) for name in expected if name in held}
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error})") from error
    _refuse([f"not finite: {name}" for name in state if not torch.isfinite(state[name]).all()])
    module.load_state_dict(state)


def _faults(expected: Mapping[str, torch.Tensor], weights: Any) -> Iterator[str]:
    """What keeps an open file's weights from being those that are expected."""
    held = set(weights.keys())
    kept = {name.partition(".")[0] for name in expected}
    yield from (f"missing {n}" for n in expected if n not in held and not n.endswith(COUNTER))
    yield from (
        f"unknown {n!r:.80}"
        for n in sorted(held)
        if n.partition(".")[0] in kept and n not in expected
    )
    for name in expected:
        if name in held:
            part = weights.get_slice(name)
            shape, wanted = part.get_shape(), list(expected[name].shape)
            if shape != wanted:
                yield f"{name} has shape {shape}, not {wanted}"
            elif expected[name].is_floating_point() and part.get_dtype() not in FLOATS:
                yield f"{name} is {part.get_dtype()}, not one of {', '.join(FLOATS)}"


def _refuse(faults: list[str]) -> None:
    if faults:
        more = f" and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise ValueError(f"not this network's weights: {'; '.join(faults[:MOST_FAULTS])}{more}")
