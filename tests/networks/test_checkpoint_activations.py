"""What is recomputed is not kept, and is the same."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sid_scale.networks.checkpoint_activations import BlocksError, checkpoint_activations
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.edm2.network import EDM2
from tests.tiny import ARCHITECTURE, tiny_network


def network(how, *, frozen: bool = False) -> EDM2:
    made = tiny_network().train().requires_grad_(not frozen)
    checkpoint_activations(made, how)
    return made


def forward(made: EDM2) -> tuple[int, Tensor, Tensor]:
    """-> bytes that wait for the backward pass, weights aside; the input; the output's sum."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        total = made(x, torch.ones(4), torch.arange(4)).denoised.square().sum()
    own = {p.untyped_storage().data_ptr() for p in made.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(n for pointer, n in storages.items() if pointer not in own), x, total


def kept(how, *, frozen: bool = False) -> int:
    return forward(network(how, frozen=frozen))[0]


@pytest.mark.parametrize("frozen", [False, True])
def test_less_waits_for_the_backward_pass(frozen: bool):
    everything, nothing = kept("keep", frozen=frozen), kept("checkpoint", frozen=frozen)
    shallow, deep = kept((8,), frozen=frozen), kept((4,), frozen=frozen)
    assert nothing < 0.35 * everything
    assert nothing < shallow < everything
    assert nothing < deep < everything
    assert kept((4, 8), frozen=frozen) == nothing
    if not frozen:  # fairscale's wrapper copies nothing from a CPU to itself
        assert kept("offload") < 0.5 * nothing


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("how", ["checkpoint", "offload", (8,), (8, 4)])
def test_gradients_are_the_same(how, frozen: bool):
    gradients = []
    for held in ("keep", how):
        made = network(held, frozen=frozen)
        _, x, total = forward(made)
        total.backward()
        gradients.append({"x": x.grad, **{n: p.grad for n, p in made.named_parameters()}})
    expected, actual = gradients
    assert (expected["unet.out_conv.weight"] is None) == frozen
    for name, gradient in expected.items():
        if gradient is None:
            assert actual[name] is None
        elif frozen and how == "offload":  # fairscale's wrapper adds up in another order
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(actual[name], gradient), name


def test_names_of_parameters_stay():
    names = [name for name, _ in tiny_network().named_parameters()]
    assert [name for name, _ in network("checkpoint").named_parameters()] == names


def test_a_resolution_that_no_block_has_is_named():
    with pytest.raises(BlocksError, match="EDM2 has no blocks of resolution 64; it has 8, 4"):
        network((8, 64))


def test_a_network_without_blocks_is_refused():
    class Plain(Denoiser):
        pass

    plain = Plain(ARCHITECTURE)
    checkpoint_activations(plain, "keep")
    with pytest.raises(BlocksError, match="Plain has no blocks to checkpoint; use keep"):
        checkpoint_activations(plain, "checkpoint")
