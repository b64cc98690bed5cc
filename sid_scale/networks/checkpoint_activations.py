"""Less memory for what waits for the backward pass.

A block's activations can be computed again when the backward pass needs them; its inputs alone are
then kept, or wait in host memory. Results are the same, bit for bit.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from fairscale.nn import checkpoint_wrapper
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from sid_scale.errors import SidScaleError
from sid_scale.networks.as_written import unless_as_written
from sid_scale.networks.denoiser import Denoiser, blocks_of

# keep, checkpoint, offload, or the resolutions whose blocks are checkpointed.
Activations = str | tuple[int, ...]


class BlocksError(SidScaleError):
    """A network lacks the blocks that a setting is about; the message says which it has."""

    exit_status = 2


def checkpointed_blocks(network: nn.Module, how: Activations) -> list[nn.Module]:
    """The blocks whose activations are computed again; [] for keep.

    Raises:
        BlocksError: the network has none, or none of a resolution.
    """
    if how == "keep":
        return []
    blocks = blocks_of(network)
    if not blocks:
        raise BlocksError(f"{type(network).__name__} has no blocks to checkpoint; use keep")
    if isinstance(how, str):
        return [block for block, _ in blocks]
    has = dict.fromkeys(resolution for _, resolution in blocks)
    if lacking := [resolution for resolution in how if resolution not in has]:
        raise BlocksError(
            f"{type(network).__name__} has no blocks of resolution {lacking[0]}; it has "
            f"{', '.join(map(str, has))}"
        )
    return [block for block, resolution in blocks if resolution in how]


def checkpoint_activations(network: nn.Module, how: Activations) -> None:
    """Makes blocks of a network compute their activations again in the backward pass.

    Modules and names of parameters stay as they are: the forwards are replaced. Inside `as_written`
    all is kept.

    Args:
        network: frozen for good if none of its parameters requires a gradient, or to be trained.

    Raises:
        BlocksError: see `checkpointed_blocks`.
    """
    trained = any(p.requires_grad for p in network.parameters())
    for block in checkpointed_blocks(network, how):
        forward = block.forward
        if how == "offload" and not trained:
            # Under ZeRO this wrapper gives wrong gradients to weights in training.
            checkpoint_wrapper(block, offload_to_cpu=True)
        else:
            draws = trained and isinstance(network, Denoiser) and network.architecture.dropout > 0
            block.forward = _checkpointed(forward, draws=draws, offload=how == "offload")
        block.forward = unless_as_written(block, forward, block.forward)


def _checkpointed(forward: Callable[..., Any], *, draws: bool, offload: bool) -> Callable[..., Any]:
    """A forward that keeps its inputs, and is run again by the backward pass.

    Args:
        draws: whether random numbers are drawn in it, which have to be the same again.
        offload: whether the inputs are kept in host memory.
    """

    def again(*args: Any, **kwargs: Any) -> Any:
        # Only the inputs are saved in this context: the checkpoint inside drops all else.
        with save_on_cpu(torch.cuda.is_available()) if offload else nullcontext():
            return checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs
            )

    return again
