"""Which weights of a role's network stay as those of the network that it starts from."""

import re
from collections.abc import Mapping

from torch import nn

from sid_scale.config.parse import ConfigError
from sid_scale.methods import Role
from sid_scale.networks.denoiser import Denoiser


def frozen_weights(role: Role, network: nn.Module) -> list[str]:
    """Names of the parameters that `role.freeze` is about, in the network's order.

    Args:
        network: the role's, on any device.

    Raises:
        ConfigError: a group or pattern matches nothing, or nothing would be left to train.
    """
    if not role.freeze:
        return []
    if role.build is not None or not isinstance(network, Denoiser):
        raise ConfigError(
            f"freeze: the {role.name} is no copy of the teacher, so no folder has its weights; "
            "freeze weights of copies alone"
        )
    found = {name for group in role.freeze for name in _matching(group, network, role)}
    names = [name for name, _ in network.named_parameters() if name in found]
    if len(names) == len(list(network.parameters())):
        raise ConfigError(
            f"freeze: {', '.join(role.freeze)} are all weights of the {role.name}, and none would "
            "be left to train: name fewer of them"
        )
    return names


def _matching(group: str, network: Denoiser, role: Role) -> list[str]:
    """Names of the parameters in a group, or that a pattern matches."""
    names = [name for name, _ in network.named_parameters()]
    groups = network.weight_groups
    try:
        pattern = re.compile(groups.get(group, group))
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"freeze: {group!r} is neither a group of weights of the {role.name} "
            f"({_listed(groups)}) nor a regular expression: {error}"
        ) from error
    matching = [name for name in names if pattern.fullmatch(name)]
    if not matching:
        raise ConfigError(
            f"freeze: {group!r} matches no weight of the {role.name}, of family "
            f"{network.architecture.family}: name groups of weights ({_listed(groups)}), or "
            f"regular expressions that match whole names such as {names[0]}"
        )
    return matching


def _listed(groups: Mapping[str, str]) -> str:
    return ", ".join(groups) or "it has none"
