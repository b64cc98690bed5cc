"""What a run holds on GPUs, nodes and disks."""

import dataclasses
from pathlib import Path

import pytest

from sid_scale.estimate.report import Plan, at_stage, describe
from sid_scale.estimate.state import buffer_bytes, state_bytes, step_bytes
from sid_scale.estimate.traffic import (
    checkpoint_bytes,
    communication,
    host_bytes,
    snapshot_bytes,
)
from sid_scale.zero.settings import read_deepspeed_json
from tests.estimate.plans import BF16, FLOAT32_GRADIENTS, plan
from tests.tiny import freezing_generator, write_deepspeed_json

XXL = "teachers/edm2-img512-xxl-0939524-0.070"
DS = {**BF16, **FLOAT32_GRADIENTS}
GB = 1e9


@pytest.fixture(scope="module")
def xxl(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Plan]:
    """EDM2-XXL on 64 GPUs, by stage."""
    folder = tmp_path_factory.mktemp("xxl")
    two = plan(folder, 2, nodes=8, gpus=8, teacher=XXL, ds=DS)
    zero = read_deepspeed_json(write_deepspeed_json(folder, 0, **BF16), 2, 1)
    replicated = dataclasses.replace(two.sharding, settings=zero)
    return {
        0: dataclasses.replace(two, sharding=replicated),
        **{stage: at_stage(two, stage) for stage in (1, 2, 3)},
    }


def test_each_stage_shares_out_more(xxl):
    """Two networks of 1.523e9 parameters, in gigabytes of 2, 4 and 8 bytes each."""
    n = 1.523
    told = {s: state_bytes(p.sharding) for s, p in xxl.items()}
    expected = {
        "weights": {0: 8 * n, 1: 4 * n, 2: 4 * n, 3: 4 * n / 64},
        "gradients": {0: 4 * n, 1: 2 * n, 2: 4 * n / 64, 3: 8 * n / 64},
        "optimizer": {0: 24 * n, 1: 24 * n / 64, 2: 24 * n / 64, 3: 24 * n / 64},
        "average": {0: 4 * n, 1: 4 * n / 64, 2: 4 * n / 64, 3: 4 * n / 64},
        "fixed": dict.fromkeys(range(4), 2 * n),
    }
    for name, by_stage in expected.items():
        for stage, gigabytes in by_stage.items():
            tolerance = 0.02 * gigabytes + 0.01  # a few small parameters stay gathered
            assert told[stage][name] / GB == pytest.approx(gigabytes, abs=tolerance), (stage, name)


def test_gradients_are_of_one_network_where_the_step_gives_them_back(tmp_path: Path):
    two, three = (state_bytes(plan(tmp_path, stage, ds=DS).sharding) for stage in (2, 3))
    assert three["gradients"] == pytest.approx(2 * two["gradients"], rel=0.01)


def test_buffers_follow_the_json(xxl):
    """A bucket of 5e8 gradients, their flat copy, and another one in the dtype that is sent."""
    told = {stage: buffer_bytes(p.sharding) / GB for stage, p in xxl.items()}
    assert told == pytest.approx({0: 0, 1: 1 + 1 + 2, 2: 1 + 1 + 2, 3: 2 + 2 + 2 + 4})


def test_overlapped_communication_takes_a_second_bucket(tmp_path: Path):
    zero = {"reduce_bucket_size": 1000, "stage": 2}
    plain, overlapped = (
        buffer_bytes(plan(tmp_path, 2, ds={**BF16, "zero_optimization": z}).sharding)
        for z in (zero, {**zero, "overlap_comm": True})
    )
    assert overlapped - plain == 2000


def test_forward_weights_are_made_in_a_float32_copy(xxl):
    n = 1.523
    told = {stage: step_bytes(p.sharding) / GB for stage, p in xxl.items()}
    # At stage 1 gradients are flattened in float32 beside it.
    assert told == pytest.approx({0: 4 * n, 1: 8 * n / 64, 2: 4 * n / 64, 3: 4 * n / 64}, rel=0.02)


def test_offloaded_state_is_in_the_nodes_memory(tmp_path: Path):
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "stage3_param_persistence_threshold": 0,
    }
    on_gpu = plan(tmp_path, 3, nodes=2, gpus=4, ds=DS).sharding
    offloaded = plan(tmp_path, 3, nodes=2, gpus=4, ds={**DS, "zero_optimization": zero}).sharding
    left = {name: n for name, n in state_bytes(offloaded).items() if n}
    assert left == {"fixed": state_bytes(on_gpu)["fixed"]}
    held = state_bytes(on_gpu)
    host = host_bytes(offloaded, 4, async_save=False)
    assert host["optimizer, average"] == pytest.approx(4 * (held["optimizer"] + held["average"]))
    assert host["gradients"] == pytest.approx(4 * held["gradients"])
    assert communication(offloaded, plan(tmp_path, 3).count, 2).host > 0


def test_an_optimizer_offloaded_at_zero_2_leaves_float32_sums_on_the_gpu(tmp_path: Path):
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    summed, half = (
        plan(tmp_path, 2, gpus=8, batch_size=64, ds={**ds, "zero_optimization": zero})
        for ds in (DS, BF16)
    )
    on_gpu = plan(tmp_path, 2, gpus=8, ds=DS).sharding
    held = state_bytes(summed.sharding)
    assert held["gradients"] == state_bytes(on_gpu)["gradients"]
    assert held["optimizer"] == held["average"] == state_bytes(half.sharding)["gradients"] == 0
    # Sums in the host's memory cross to the GPU and back with each of the four micro-batches.
    crossing = [communication(p.sharding, p.count, p.accumulation).host for p in (summed, half)]
    parameters = summed.sharding.total / 8
    assert crossing == pytest.approx([(4 + 2) * parameters, (4 * 2 * 2 + 2) * parameters])


def test_xxls_offloaded_state_takes_61_gb_of_one_node(xxl):
    offload = {"offload_optimizer": {"device": "cpu"}}
    two = xxl[2].sharding
    config = {**two.settings.config, "zero_optimization": {"stage": 2, **offload}}
    settings = dataclasses.replace(two.settings, config=config)
    one_node = dataclasses.replace(two, ranks=8, settings=settings)
    assert sum(host_bytes(one_node, 8, async_save=False).values()) / GB == pytest.approx(61, 0.01)


def test_a_checkpoint_and_its_copy_in_host_memory(xxl):
    sharding = xxl[2].sharding
    assert checkpoint_bytes(sharding) / GB == pytest.approx(43, rel=0.01)
    host = host_bytes(sharding, 8, async_save=True)
    assert host == {"checkpoint copy": checkpoint_bytes(sharding) / 8}
    assert sum(host_bytes(sharding, 8, async_save=False).values()) == 0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_each_average_takes_four_bytes_a_parameter(tmp_path: Path, stage: int):
    """On GPUs in shards, in checkpoints and their copies, and in snapshots, which add up."""
    more = {"ema__relative_widths": "[0.05,0.1]", "total_images": 128}
    one, three = (plan(tmp_path, stage, gpus=2, batch_size=4, **s) for s in ({}, more))
    parameters = one.sharding.parameters["generator"]
    before, after = (state_bytes(p.sharding) for p in (one, three))
    shards = 2 if stage else 1
    assert after["average"] - before["average"] == 2 * 4 * parameters / shards
    assert {**after, "average": 0} == {**before, "average": 0}
    sizes = [checkpoint_bytes(p.sharding) for p in (one, three)]
    assert sizes[1] - sizes[0] == snapshot_bytes(three.sharding) == 2 * 4 * parameters
    assert snapshot_bytes(one.sharding) == 0
    gigabytes = 2 * 4 * parameters / 1e9
    told = f"snapshots of 2 averages: 32 of {gigabytes:.1f} GB, {32 * gigabytes:,.1f} GB by the end"
    assert told in describe(three, memory_limit=80)[0]
    assert "snapshots" not in describe(one, memory_limit=80)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_weights_are_read_and_nothing_more(tmp_path: Path, stage: int):
    """They take no state, no room in a checkpoint, and no gradients are sent."""
    whole = plan(tmp_path, stage, gpus=8, batch_size=64, ds=BF16)
    with freezing_generator("convolutions"):
        part = plan(tmp_path, stage, gpus=8, batch_size=64, ds=BF16)
    frozen = part.sharding.frozen["generator"]
    assert part.sharding.frozen["fake_score"] == 0
    assert frozen > 0.5 * whole.sharding.parameters["generator"]
    total = whole.sharding.parameters["generator"]
    told = f"generator: {total - frozen:,} of {total:,} parameters are trained\n"
    assert told in describe(part, memory_limit=80)[0]
    before, after = (state_bytes(p.sharding) for p in (whole, part))
    saved = {name: before[name] - after[name] for name in before}
    expected = {"optimizer": 12 * frozen / 8, "average": 4 * frozen / 8}
    expected |= {"weights": 0, "fixed": 0}
    assert {name: saved[name] for name in expected} == pytest.approx(expected)
    of_each = whole.settings.training_bytes(8, averages=1)
    gradient = 2 * frozen if stage == 1 else 2 * frozen / 8
    assert of_each == pytest.approx({"GPU": (16 * frozen / 8 + gradient) / frozen, "host": 0})
    sizes = [checkpoint_bytes(p.sharding) for p in (whole, part)]
    assert sizes[0] - sizes[1] == 16 * frozen
    sent = [
        communication(p.sharding, p.count, p.accumulation).per_iteration(p.accumulation)
        for p in (whole, part)
    ]
    # Gradients in float32, all-reduced once an update or in each of four micro-batches, and at
    # stages 1 and 2 the new weights.
    once = {1: 2 * 4 + 2, 2: 4 * 2 * 4 + 2, 3: 4 * 4}[stage]
    assert sent[0] - sent[1] == pytest.approx(7 / 8 * once * frozen)


def test_what_ranks_send_in_an_iteration(xxl):
    """Gradients, in float32, all-reduced, go twice over the network: once an update, at ZeRO 2 in
    every micro-batch. Stage 3 gathers weights as well, for every forward and backward."""
    network, others = 2 * 1.523, 63 / 64  # GB of two, at a byte a number
    sent = {
        stage: communication(p.sharding, p.count, 16).per_iteration(16) / GB
        for stage, p in xxl.items()
    }
    assert sent[0] == pytest.approx(others * 2 * 4 * network, rel=0.02)
    assert sent[1] == pytest.approx(others * (2 * 4 + 2) * network, rel=0.02)
    assert sent[2] == pytest.approx(others * (16 * 2 * 4 + 2) * network, rel=0.02)
    assert sent[3] == pytest.approx(others * 16 * (4 + 7.0) * network, rel=0.03)


def test_one_gpu_sends_nothing(tmp_path: Path):
    alone = plan(tmp_path, 2, ds=BF16)
    assert communication(alone.sharding, alone.count, 4).per_iteration(4) == 0
