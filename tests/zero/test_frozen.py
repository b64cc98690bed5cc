"""Weights that are frozen stay as the file has them while the others train, at every stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.zero.checkpoint import TrainingState, load_checkpoint
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import ShardedNetwork
from sid_scale.zero.fragments import local_fragments
from sid_scale.zero.saved import opened, read_manifest
from tests.ranks import run_ranks
from tests.tiny import tiny_folder
from tests.zero.test_checkpoint import save
from tests.zero.test_sharding import (
    DECAY,
    UPDATES,
    VARIANTS,
    Dense,
    assert_same,
    build,
    data,
    loss_of,
    masters,
)

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)
BF16 = {"bf16": {"enabled": True}}
# Rows whose magnitudes forced normalisation would change, layers at both ends, and a gain.
FROZEN = [
    name
    for name, _ in tiny_folder().build().named_parameters()
    if "conv_res" in name or name.endswith(("8x8_conv.weight", "out_conv.weight", "out_gain"))
]


def forward_weights(network: ShardedNetwork) -> Iterator[tuple[str, Tensor]]:
    """What the forward pass reads, whole. Collective."""
    for name, p in network.module.named_parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            yield name, p.detach().clone()


def assert_frozen(network: ShardedNetwork) -> None:
    dtype = next(network.module.parameters()).dtype
    expected = tiny_folder().build().state_dict()
    found = dict(forward_weights(network))
    for name in FROZEN:
        assert torch.equal(found[name], expected[name].to(dtype)), name


def optimizer_elements(network: ShardedNetwork) -> int:
    """Of masters and moments on this rank; parts that are cut to be equal are filled up."""
    states = network.engine.basic_optimizer.state
    assert all({"exp_avg", "exp_avg_sq"} <= state.keys() for state in states.values())
    return sum(flat.numel() for flat in states)


def train(network: ShardedNetwork, ema: ShardedEMA, rank: int, numbers: range) -> list[float]:
    """-> the losses."""
    told = []
    for number in numbers:
        with network.frozen():  # as in an update of another network
            assert not any(p.requires_grad for p in network.module.parameters())
        loss = loss_of(network, data(number, rank))
        network.backward(loss)
        assert network.step()
        ema.update(DECAY)
        told.append(float(loss.detach()))
    return told


def test_the_others_train_as_without_shards(tmp_path: Path):
    run_ranks(2, _training, tmp_path)


def _training(rank: int, folder: Path) -> None:
    dense = Dense(frozen=FROZEN)
    for number in range(UPDATES):
        dense.update(number)
    trained = sum(weight.numel() for weight in dense.weights.values())
    for variant in VARIANTS:
        network = build(variant["stage"], folder, frozen=FROZEN, zero_optimization=variant)
        assert_frozen(network)  # before the first update, too
        ema = ShardedEMA(network)
        train(network, ema, rank, range(UPDATES))
        with torch.no_grad(), ema.applied():
            assert_frozen(network)
        assert_frozen(network)
        state, average = masters(network), ema.gather()
        assert state.keys() == dense.weights.keys()
        assert_same(state, dense.weights)
        if rank == 0:
            assert average.keys() == dense.weights.keys()
            assert_same(average, dense.average)
        assert all(p.grad is None for n, p in network.module.named_parameters() if n in FROZEN)
        held = torch.tensor([optimizer_elements(network), sum(v.numel() for v in ema.values)])
        if variant["stage"]:
            dist.all_reduce(held)
        assert trained <= held[0] < 1.05 * trained
        assert held[1] == trained


def test_half_precision_reads_the_files_weights_rounded_once(tmp_path: Path):
    run_ranks(2, _half, tmp_path)


def _half(rank: int, folder: Path) -> None:
    told = []
    for stage in STAGES:
        network = build(stage, folder, frozen=FROZEN, **BF16)
        told.append(train(network, ShardedEMA(network), rank, range(UPDATES)))
        assert next(network.module.parameters()).dtype == (
            torch.bfloat16 if stage else torch.float32
        )
        assert_frozen(network)
    assert told[1] == pytest.approx(told[0], rel=0.02)
    assert told[2:] == [pytest.approx(told[1], rel=1e-3)] * 2


def test_a_checkpoint_has_nothing_of_them_and_is_read_at_any_stage(tmp_path: Path):
    run_ranks(2, _checkpoint, tmp_path)
    run_ranks(1, _resumed, tmp_path, {"stage": 2})


def _checkpoint(rank: int, folder: Path) -> None:
    for stage, other in ((0, 3), (1, 1), (2, 2), (3, 0)):
        network = build(stage, folder, frozen=FROZEN)
        ema = ShardedEMA(network)
        train(network, ema, rank, range(1))
        checkpoint = save(folder, stage, TrainingState({"generator": network}, {"generator": ema}))
        manifest = read_manifest(checkpoint)
        for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
            with opened(checkpoint, manifest.of("generator", kind)) as slices:
                assert slices.parameters() == masters(network).keys()
        again, again_ema = _resumed(rank, folder, {"stage": other}, checkpoint)
        moved = [train(n, e, rank, range(1, 3)) for n, e in ((network, ema), (again, again_ema))]
        if other == stage:
            assert moved[0] == moved[1]
        assert_same(masters(again), masters(network), 0 if other == stage else 2e-5)


def _resumed(
    rank: int, folder: Path, variant: dict[str, Any], checkpoint: Path | None = None
) -> tuple[ShardedNetwork, ShardedEMA]:
    """A network whose state is a checkpoint's: of the last one by default."""
    checkpoint = checkpoint or folder / "000000000003"
    network = build(variant["stage"], folder, frozen=FROZEN)
    ema = ShardedEMA(network)
    load_checkpoint(checkpoint, TrainingState({"generator": network}, {"generator": ema}))
    assert_frozen(network)
    manifest = read_manifest(checkpoint)
    with opened(checkpoint, manifest.of("generator", "master")) as slices:
        for fragment in local_fragments(network.engine):
            values = torch.empty(fragment.numel)
            slices.fill(values, fragment.name, fragment.start)
            assert torch.equal(fragment.master, values)
    return network, ema
