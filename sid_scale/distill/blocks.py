"""What a run does to its networks' blocks: recomputation and compilation."""

from collections.abc import Mapping

import torch
from torch import nn

from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig
from sid_scale.methods import TEACHER, Method
from sid_scale.networks import Architecture
from sid_scale.networks.checkpoint_activations import (
    BlocksError,
    checkpoint_activations,
    checkpointed_blocks,
)
from sid_scale.networks.compile_blocks import compile_blocks, lacks_compiler
from sid_scale.networks.denoiser import blocks_of


def check_blocks(
    config: RunConfig,
    method: Method,
    teacher: Architecture,
    guides: Mapping[str, Architecture],
    device: torch.device,
) -> None:
    """Looks whether the networks have the blocks that settings are about.

    Args:
        guides: architectures of the teacher's guides, by name.

    Raises:
        ConfigError: `activations` names a network or a resolution that is not there, or nothing
            can be compiled.
    """
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {name: guide.build() for name, guide in guides.items()}
        for role in method.roles():
            networks[role.name] = role.network(role.architecture(teacher))
        if method.uses_teacher:
            networks[TEACHER] = teacher.build()
    for name, how in config.activations_of(networks).items():
        try:
            checkpointed_blocks(networks[name], how)
        except BlocksError as error:
            raise ConfigError(f"activations.{name}: {error}") from error
    if config.compile_blocks and not any(map(blocks_of, networks.values())):
        raise ConfigError("compile_blocks: the networks have no blocks to compile; use false")
    if config.compile_blocks and (lacking := lacks_compiler(device)):
        raise ConfigError(f"compile_blocks: there is no {lacking}; or use false")


def prepare_blocks(network: nn.Module, name: str, config: RunConfig) -> None:
    """Makes blocks of the network of that name recompute, and compiles them, as a run asks.

    A network that is frozen for good is frozen already.
    """
    if config.compile_blocks:
        compile_blocks(network)
    checkpoint_activations(network, config.activations.get(name, "keep"))
