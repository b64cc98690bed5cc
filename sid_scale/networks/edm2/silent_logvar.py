"""An uncertainty head that says 0, for a network without one.

EDM2's `Precond` insists on weights for its head, which a generator has not.
"""

import dataclasses

import torch

from sid_scale.errors import UsageError
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import NetworkFolder


def with_silent_logvar(network: NetworkFolder, channels: int = 128) -> NetworkFolder:
    """The network with an uncertainty head that says 0 everywhere; one that has a head keeps it.

    Args:
        channels: `logvar_channels` of the network that is to load it; EDM2's are 128.

    Raises:
        UsageError: the network is of a family without uncertainty heads.
    """
    architecture = network.architecture
    if not isinstance(architecture, EDM2Architecture):
        raise UsageError(
            f"--logvar: networks of family {architecture.family} have no uncertainty head: "
            "leave it out"
        )
    if architecture.logvar_channels:
        return network
    head = {
        "logvar_fourier.freqs": torch.zeros(channels),
        "logvar_fourier.phases": torch.zeros(channels),
        "logvar_linear.weight": torch.zeros(1, channels),
    }
    architecture = dataclasses.replace(architecture, logvar_channels=channels)
    return dataclasses.replace(network, architecture=architecture, state={**network.state, **head})
