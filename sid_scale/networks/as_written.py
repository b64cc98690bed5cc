"""Blocks that run as they are written for a while, although they are compiled or recomputed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sid_scale.networks.denoiser import blocks_of

_AS_WRITTEN = "_runs_as_written"  # attribute of a block

Forward = Callable[..., Any]


def unless_as_written(block: nn.Module, forward: Forward, other: Forward) -> Forward:
    """`other`, and `forward` inside `as_written`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return (forward if getattr(block, _AS_WRITTEN, False) else other)(*args, **kwargs)

    return run


@contextmanager
def as_written(network: nn.Module) -> Iterator[None]:
    """Inside, the network's blocks are neither compiled nor computed again."""
    blocks = [block for block, _ in blocks_of(network)]
    for block in blocks:
        setattr(block, _AS_WRITTEN, True)
    try:
        yield
    finally:
        for block in blocks:
            setattr(block, _AS_WRITTEN, False)


@contextmanager
def twice_differentiable(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, gradients through these networks can be differentiated again.

    Compiled blocks and fused attention have no second derivative. What is computed again in the
    backward pass of a gradient is kept by the graph of that gradient all the same.
    """
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(as_written(network))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
