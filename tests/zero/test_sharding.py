"""What the optimizer steps is normalised, averaged, skipped and saved right at every stage.

The reference is one dense network on one process that sees both ranks' data.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from deepspeed import get_accelerator
from torch import Tensor
from torch.func import functional_call

from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.edm2.layers import normalise_rows
from sid_scale.networks.folder import NetworkFolder
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import (
    carry_masters,
    gather_parameters,
    local_fragments,
)
from sid_scale.zero.settings import read_deepspeed_json
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_folder, write_deepspeed_json

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)
ON_CPU = {"device": "cpu"}
# What else of `zero_optimization` changes how state is laid out or where it is.
VARIANTS = (
    *({"stage": stage} for stage in STAGES),
    {"stage": 2, "parameter_alignment": False},
    *({"stage": stage, "offload_optimizer": ON_CPU} for stage in (1, 2, 3)),
    {"stage": 3, "offload_param": ON_CPU},
    {"stage": 3, "offload_optimizer": ON_CPU, "offload_param": ON_CPU},
)
ADAM = AdamConfig(learning_rate=1e-2)
DECAY = 0.8
UPDATES = 3


def data(update: int, rank: int, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * update + rank)
    x = torch.randn(count, 3, 8, 8, generator=g)
    return x, torch.rand(count, generator=g) + 0.5, torch.arange(count) % 4


def loss_of(network: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    denoised, logvar, (deepest,) = network(*batch, features=(-1,))
    return denoised.square().mean() + deepest.mean() + logvar.mean()


def build(
    stage: int,
    folder: Path,
    accumulation: int = 1,
    *,
    forced_norm: bool = True,
    frozen: Collection[str] = (),
    **settings: Any,
) -> ShardedNetwork:
    own = folder / str(dist.get_rank())
    json = write_deepspeed_json(own, stage, **settings)
    return built(json, accumulation, forced_norm=forced_norm, frozen=frozen)


def build_variant(variant: dict, folder: Path, accumulation: int = 1) -> ShardedNetwork:
    return build(variant["stage"], folder, accumulation, zero_optimization=variant)


def built(
    json: Path | str,
    accumulation: int,
    *,
    forced_norm: bool = True,
    frozen: Collection[str] = (),
) -> ShardedNetwork:
    ds, start = read_deepspeed_json(json, 4, accumulation), tiny_folder()
    stored = ds.compute_dtype if ds.stage else torch.float32
    network = start.build_zero(ds.compute_dtype, stored, "cpu", frozen=frozen)
    scales = network.forward_scales()
    return ShardedNetwork(
        network,
        ds,
        ADAM,
        start.state,
        frozen=frozen,
        forward_scales=scales,
        forced_norm=forced_norm,
    )


def masters(network: ShardedNetwork) -> dict[str, Tensor]:
    """The full masters, on every rank."""
    fragments = local_fragments(network.engine)
    state = gather_parameters(network.engine, fragments, [f.master for f in fragments])
    shared = [state]
    dist.broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


class Dense:
    """The same training without DeepSpeed, normalising in every forward pass: both ranks' batches,
    Adam, clipping, forced normalisation, average. All of it leaves `frozen` weights alone."""

    def __init__(
        self, *, forced_norm: bool = True, clipping: float = 0.0, frozen: Collection[str] = ()
    ) -> None:
        folder = tiny_folder()
        self.network = folder.build()
        self.scales = self.network.forward_scales()
        self.forced_norm, self.clipping = forced_norm, clipping
        named = dict(self.network.named_parameters())
        self.frozen = {name: folder.state[name] for name in frozen}
        trained = (name for name in named if name not in frozen)
        self.weights = {name: folder.state[name].clone().requires_grad_() for name in trained}
        self.normalise()
        self.adam = torch.optim.Adam(
            self.weights.values(), lr=ADAM.learning_rate, betas=ADAM.betas, eps=1e-8
        )
        self.average = {k: v.detach().clone() for k, v in self.weights.items()}

    def __call__(self, *batch: Tensor, **options: Any) -> Any:
        read = {
            name: normalise_rows(w, self.scales[name]) if name in self.scales else w
            for name, w in (self.weights | self.frozen).items()
        }
        return functional_call(self.network, read, batch, options)

    @torch.no_grad()
    def normalise(self) -> None:
        for name in self.scales.keys() & self.weights if self.forced_norm else ():
            self.weights[name].copy_(normalise_rows(self.weights[name]))

    def update(self, number: int) -> None:
        self.adam.zero_grad()
        sum(loss_of(self, data(number, rank)) for rank in (0, 1)).div(2).backward()
        if self.clipping:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.clipping)
        self.adam.step()
        self.normalise()
        with torch.no_grad():
            for name, p in self.weights.items():
                self.average[name].lerp_(p, 1 - DECAY)


def assert_same(actual: dict[str, Tensor], expected, tolerance: float = 2e-5) -> None:
    for name, value in dict(expected).items():
        difference = (actual[name] - value.detach()).abs().max()
        assert difference <= tolerance * (1 + value.abs().max()), name


def test_sharded_training_is_dense_training(tmp_path: Path):
    run_ranks(2, _training, tmp_path)


def _training(rank: int, folder: Path) -> None:
    dense = Dense()
    for number in range(UPDATES):
        dense.update(number)
    state = {**tiny_folder().state, **dense.average}
    averaged = NetworkFolder(ARCHITECTURE, state).build()
    for variant in VARIANTS:
        network = build_variant(variant, folder)
        ema = ShardedEMA(network)
        for number in range(UPDATES):
            network.backward(loss_of(network, data(number, rank)))
            assert network.step()
            ema.update(DECAY)
        state = masters(network)
        assert_same(state, dense.weights)
        _rows_are_normalised(network, state)
        _average_is_sharded_and_swaps_in_and_out(variant["stage"], network, ema, averaged)


@pytest.mark.parametrize("clipping", [0.0, 0.01])
def test_rows_may_have_any_magnitude(tmp_path: Path, clipping: float):
    """Without forced normalisation; clipped is the gradient of the masters."""
    run_ranks(2, _free_rows, tmp_path, clipping)


def _free_rows(rank: int, folder: Path, clipping: float) -> None:
    dense = Dense(forced_norm=False, clipping=clipping)
    for number in range(UPDATES):
        dense.update(number)
    for stage in STAGES:
        network = build(stage, folder, forced_norm=False, gradient_clipping=clipping)
        for number in range(UPDATES):
            network.backward(loss_of(network, data(number, rank)))
            assert network.step()
            assert network.grad_norm > 2 * clipping
        assert_same(masters(network), dense.weights)


def _rows_are_normalised(network: ShardedNetwork, state: dict[str, Tensor]) -> None:
    for name in network.module.forward_scales():
        rms = state[name].flatten(1).square().mean(dim=1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=3e-4, atol=0)


def _average_is_sharded_and_swaps_in_and_out(
    stage: int, network: ShardedNetwork, ema: ShardedEMA, averaged: Denoiser
) -> None:
    total = sum(p.numel() for p in averaged.parameters())
    held = torch.tensor(sum(v.numel() for v in ema.values))
    assert all(v.dtype == torch.float32 for v in ema.values)
    if stage == 0:
        assert held == total
    else:
        assert held < 0.8 * total  # never a full copy on a rank
        dist.all_reduce(held)
        assert held == total
    batch, before = data(99, 0), masters(network)
    with torch.no_grad():
        outside = network.module(*batch).denoised
    with torch.no_grad(), ema.applied():
        inside = network.module(*batch).denoised
    torch.testing.assert_close(inside, averaged(*batch).denoised, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(network.module(*batch).denoised, outside)
    assert not torch.allclose(inside, outside)
    assert all(torch.equal(before[name], after) for name, after in masters(network).items())


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path):
    run_ranks(2, _accumulation, tmp_path)


def _accumulation(rank: int, folder: Path) -> None:
    for variant in VARIANTS:
        whole, parts = build_variant(variant, folder), build_variant(variant, folder, 2)
        x, sigma, labels = data(0, rank, count=4)
        whole.backward(loss_of(whole, (x, sigma, labels)))
        assert whole.step()
        for half in (slice(0, 2), slice(2, 4)):
            parts.backward(loss_of(parts, (x[half], sigma[half], labels[half])))
            assert parts.step()
        assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert_same(masters(parts), masters(whole), tolerance=1e-4)


def test_new_weights_of_stage_3_are_there_before_anything_gathers_them(tmp_path: Path):
    run_ranks(1, _waiting, tmp_path)


def _waiting(rank: int, folder: Path) -> None:
    """DeepSpeed gathers on a stream that waits for no other; on CPUs there is none to wait for."""
    nothing_persists = {"stage": 3, "stage3_param_persistence_threshold": 0}
    engine = build(3, folder, zero_optimization=nothing_persists).engine
    events = []
    with (
        patch.object(get_accelerator(), "synchronize", lambda: events.append("waits")),
        patch.object(torch.Tensor, "copy_", lambda *_, **__: events.append("copies")),
    ):
        carry_masters(engine)
    assert events.count("copies") > 0
    assert events[-1] == "waits"


def test_gradients_of_ranks_are_summed_in_float32(tmp_path: Path):
    run_ranks(2, _summing, tmp_path)


def _summing(rank: int, folder: Path) -> None:
    """Of 1 and 2^-9 bfloat16 has no sum."""
    gradient = 1.0 if rank == 0 else 2.0**-9
    for stage in (2, 3):
        half = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        ds = read_deepspeed_json(write_deepspeed_json(folder / str(rank), stage, **half), 1, 1)
        linear = torch.nn.Linear(1, 1, bias=False)
        network = ShardedNetwork(linear, ds, ADAM, {"weight": torch.ones(1, 1)})
        network.backward((network(torch.ones(1, 1).bfloat16()) * gradient).float().sum())
        assert network.step()
        assert network.grad_norm == pytest.approx((1 + 2.0**-9) / 2, rel=1e-6)


def test_a_parameter_without_a_gradient_has_one_of_zeros(tmp_path: Path):
    """In an update of the encoder alone the decoder moves by what Adam remembers."""
    run_ranks(2, _in_turns, tmp_path)


def _in_turns(rank: int, folder: Path) -> None:
    expected: dict[str, Tensor] = {}
    for variant in VARIANTS:
        network = build_variant(variant, folder)
        for number in range(UPDATES):
            prediction = network(*data(number, rank), features=(-1,), decoded=number % 2 * 4)
            loss = prediction.features[0].square().mean() + prediction.logvar.mean()
            if number % 2:
                loss = loss + prediction.denoised.square().mean()
            network.backward(loss)
            assert network.step()
        expected = expected or masters(network)
        assert_same(masters(network), expected)


@pytest.mark.faults
def test_a_bad_gradient_on_one_rank_skips_the_update_on_all(tmp_path: Path):
    run_ranks(2, _bad_gradients, tmp_path)


def _bad_gradients(rank: int, folder: Path) -> None:
    for variant in (*VARIANTS, {"stage": 3, "stage3_param_persistence_threshold": 0}):
        network = build_variant(variant, folder)
        network.backward(loss_of(network, data(0, rank)))
        assert network.step()
        before = masters(network)
        for bad in (float("nan"), float("inf")):
            loss = loss_of(network, data(1, rank))
            network.backward(loss * bad if rank == 1 else loss)
            assert not network.step()
        # A loss may be infinite and its gradients finite: one that is added up, say.
        loss = loss_of(network, data(1, rank))
        network.backward(loss + float("inf") if rank == 1 else loss)
        assert not network.step()
        assert_same(masters(network), before, tolerance=1e-6)
        network.backward(loss_of(network, data(1, rank)))
        assert network.step()
        assert any(not torch.equal(before[n], after) for n, after in masters(network).items())


def test_clipping_is_the_jsons_choice(tmp_path: Path):
    run_ranks(2, _clipping, tmp_path)


def _clipping(rank: int, folder: Path) -> None:
    for stage in STAGES:
        free, clipped = build(stage, folder), build(stage, folder, gradient_clipping=1e-9)
        start = masters(free)
        for network in (free, clipped):
            network.backward(loss_of(network, data(0, rank)))
            assert network.step()
        assert clipped.grad_norm == pytest.approx(free.grad_norm, rel=1e-4)
        name = "unet.out_conv.weight"
        moved = [(masters(n)[name] - start[name]).abs().max() for n in (free, clipped)]
        # Adam's first step has the learning rate's size whatever the gradient's, unless the
        # gradient is clipped to where eps rules.
        assert moved[0] > 5e-3
        assert moved[1] < moved[0] / 5


def test_the_shipped_jsons_train_alike():
    """In bfloat16, with accumulation, normalised weights, an average and a skipped update."""
    run_ranks(2, _alike)


def _alike(rank: int) -> None:
    # Those of a pair round the same numbers.
    for pair in (
        ("zero2", "zero2_offload"),
        ("zero2_24gb", "zero2_slow_network"),
        ("zero3", "zero3_offload"),
    ):
        (weights, average), (expected, expected_average) = (_four_updates(rank, j) for j in pair)
        assert_same(weights, expected)
        torch.testing.assert_close(average, expected_average, rtol=2e-5, atol=2e-5)


def _four_updates(rank: int, json: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The weights, and this rank's part of the average."""
    network = built(json, accumulation=2)
    ema = ShardedEMA(network)
    for number in range(4):
        x, sigma, labels = data(number, rank)
        for half in (slice(0, 2), slice(2, 4)):
            loss = loss_of(network, (x[half], sigma[half], labels[half]))
            network.backward(loss * (float("nan") if number == rank == 1 else 1.0))
            finite = network.step()
        assert finite == (number != 1), json
        ema.update(DECAY)
    return masters(network), [value.cpu() for value in ema.values]


def test_an_offloaded_optimizer_needs_no_compiler(tmp_path: Path):
    run_ranks(1, _without_compiler, tmp_path)
    assert not (tmp_path / "extensions").exists()


def _without_compiler(rank: int, folder: Path) -> None:
    os.environ.update(PATH="", TORCH_EXTENSIONS_DIR=str(folder / "extensions"))
    network = build_variant({"stage": 2, "offload_optimizer": ON_CPU}, folder)
    network.backward(loss_of(network, data(0, rank)))
    assert network.step()
