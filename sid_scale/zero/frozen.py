"""Weights of a network in training that stay as they are. Does not import DeepSpeed.

A frozen parameter is one of the module's all the same: the forward pass reads it and, at stage 3,
ranks share it out. It has no master, no gradient and no state of an optimizer, so that all that
acts on these (fragments, averages, checkpoints) asks for the trained parameters alone.
"""

from collections.abc import Collection, Iterator

from torch import nn

_MARK = "stays_frozen"  # `requires_grad` comes and goes with the update that is under way


def freeze(network: nn.Module, names: Collection[str]) -> None:
    """Freezes the parameters of these names for good."""
    for name in names:
        parameter = network.get_parameter(name)
        setattr(parameter.requires_grad_(False), _MARK, True)


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of a network without the frozen ones, in its order."""
    return ((name, p) for name, p in network.named_parameters() if not getattr(p, _MARK, False))


def set_trained(network: nn.Module, is_trained: bool) -> None:
    """Says whether gradients flow into the weights of a network; into frozen ones they never do."""
    for _, parameter in trained_parameters(network):
        parameter.requires_grad_(is_trained)
