"""Less memory for the activations of a frozen network.

The generator's gradient flows through the teacher, whose activations wait for it. They need
not: a block's can be computed again, or its input can wait in host memory.
"""

from typing import Literal

from fairscale.nn import checkpoint_wrapper

from sid_scale.networks.edm2.network import EDM2, Block

Activations = Literal["keep", "checkpoint", "offload"]


def checkpoint_activations(network: EDM2, how: Activations) -> None:
    """Makes each block of a frozen network recompute its activations in the backward pass.

    With `offload` the block's inputs wait in host memory, too. Results are the same. Only for
    frozen networks: under ZeRO this wrapper gives wrong gradients to trained weights.
    """
    if how == "keep":
        return
    for part in (network.unet.enc, network.unet.dec):
        for name, block in part.items():
            if isinstance(block, Block):
                part[name] = checkpoint_wrapper(block, offload_to_cpu=how == "offload")
