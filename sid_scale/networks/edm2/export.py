"""Networks for others: one safetensors file with EDM2's own parameter names and shapes.

`network.load_state_dict(safetensors.torch.load_file(path))` fills EDM2's `Precond` and SiD's
generators from it. Those that have an uncertainty head insist on weights for it, which a generator
has not: `with_silent_logvar` adds some.
"""

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sid_scale.atomic import atomic_write
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import CheckpointError, NetworkFolder


def export_network(network: NetworkFolder, path: Path, *, replace: bool = False) -> None:
    """Writes the weights, bit for bit, under EDM2's names and shapes (gains of shape []).

    Args:
        network: what to write.
        path: the file; a missing folder is made.
        replace: whether a file that is there may go.

    Raises:
        CheckpointError: the file is there and may not go, or cannot be written.
    """
    if path.exists() and not replace:
        raise CheckpointError(f"{path} is there already: --force replaces it")
    tensors = {k: v.contiguous() for k, v in network.architecture.to_file(network.state).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(tensors, partial)
            partial.chmod(mode)  # safetensors writes 0600
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def with_silent_logvar(network: NetworkFolder, channels: int = 128) -> NetworkFolder:
    """The network with an uncertainty head that says 0 everywhere; one that has a head keeps it.

    Args:
        channels: `logvar_channels` of the network that is to load it; EDM2's are 128.
    """
    architecture = network.architecture
    if not isinstance(architecture, EDM2Architecture) or architecture.logvar_channels:
        return network
    head = {
        "logvar_fourier.freqs": torch.zeros(channels),
        "logvar_fourier.phases": torch.zeros(channels),
        "logvar_linear.weight": torch.zeros(1, channels),
    }
    architecture = dataclasses.replace(architecture, logvar_channels=channels)
    return dataclasses.replace(network, architecture=architecture, state={**network.state, **head})
