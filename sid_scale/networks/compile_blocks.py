"""Blocks compiled by `torch.compile`: fewer, larger kernels.

A block is compiled once for each way in which training calls it: with and without gradients, with
its weights frozen or not, for each size of batch. Samples and evaluations run as written: their
sizes of batch would be compilations of their own.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import torch
from torch import nn

from sid_scale.networks.as_written import as_written, unless_as_written
from sid_scale.networks.denoiser import blocks_of


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compiles each block's forward, when it is first called.

    Modules and names of parameters stay as they are. Inside `as_written` nothing is compiled.
    """
    for block, _ in blocks_of(network):
        block.forward = _compiled(block, backend)


@contextmanager
def sampling(network: nn.Module) -> Iterator[None]:
    """Inside, a network in training makes samples: in evaluation mode, its blocks as written."""
    network.eval()
    try:
        with as_written(network):
            yield
    finally:
        network.train()


def lacks_compiler(device: torch.device) -> str | None:
    """What Inductor needs for its kernels on a device and this machine lacks; None: nothing."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton: install PyTorch with the triton that it comes with"
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    given = os.environ.get(variable)
    if any(shutil.which(name) for name in ([given] if given else names)):
        return None
    return f"compiler ({given or ' or '.join(names)}): install one, name it in {variable}"


def _compiled(block: nn.Module, backend: str) -> Callable[..., Any]:
    forward = block.forward
    compiled = torch.compile(_with_own_code(forward), backend=backend, dynamic=False)
    return unless_as_written(block, forward, compiled)


def _with_own_code(method: Any) -> Any:
    """The method with a copy of its code.

    Dynamo counts compilations by code, and gives up after eight: too few for all blocks of a class.
    (`torch.compile(isolate_recompiles=True)` counts apart, too, but is newer than the oldest
    PyTorch here, and the limit for all compilations of one code, 256, stays.)
    """
    function = method.__func__
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy.__get__(method.__self__)
