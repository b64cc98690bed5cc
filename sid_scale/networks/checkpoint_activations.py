"""Less memory for the activations of a frozen network.

The generator's gradient flows through the teacher, whose activations wait for it. A block's can be
computed again instead, or its input can wait in host memory.
"""

from typing import Literal

from fairscale.nn import checkpoint_wrapper

from sid_scale.networks.denoiser import Denoiser

Activations = Literal["keep", "checkpoint", "offload"]


def checkpoint_activations(network: Denoiser, how: Activations) -> None:
    """Makes each block of a frozen network recompute its activations in the backward pass.

    With `offload` the block's inputs wait in host memory, too. Results are the same. Only for
    frozen networks: under ZeRO this wrapper gives wrong gradients to trained weights.
    """
    if how == "keep":
        return
    for parent, name in list(network.checkpointable()):
        block = checkpoint_wrapper(parent.get_submodule(name), offload_to_cpu=how == "offload")
        parent.add_module(name, block)
