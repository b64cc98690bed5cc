"""Copies from the host to a device, for which training would wait. Meta tensors play the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")


class _Copies(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_host = func in (torch.tensor, torch.as_tensor, torch.from_numpy) or any(
            tensor.device.type == "cpu" for tensor in given
        )
        if isinstance(result, Tensor) and result.device == DEVICE and from_host:
            self.found.append(getattr(func, "__name__", str(func)))
        return result


@contextmanager
def copies_from_host() -> Iterator[list[str]]:
    """The calls inside that take values from the host to DEVICE."""
    with _Copies() as mode:
        yield mode.found
