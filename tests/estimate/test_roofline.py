"""How long an iteration takes at assumed rates."""

import dataclasses
from pathlib import Path

import pytest

from sid_scale.estimate.roofline import IterationTime, Rates, iteration_time, sum_bytes
from tests.estimate.plans import BF16, FLOAT32_GRADIENTS, plan

TIME = IterationTime(
    compute=4.0,
    memory=2.0,
    launches=5.0,
    network=3.0,
    overlaps=False,
    images=1000,
    gpus=10,
    model_flop=1e12,
    rates=Rates(peak_tflops=100),
)


def test_launches_hide_behind_kernels_and_the_network_only_where_it_overlaps():
    assert TIME.seconds == 9
    assert dataclasses.replace(TIME, launches=7.0).seconds == 10
    assert dataclasses.replace(TIME, overlaps=True).seconds == 6
    assert dataclasses.replace(TIME, overlaps=True, network=8.0).seconds == 8


def test_the_largest_term_is_told():
    assert TIME.dominant == "launches"
    assert dataclasses.replace(TIME, launches=1.0).dominant == "compute"
    assert dataclasses.replace(TIME, network=11.0).dominant == "network"


def test_rate_utilisation_and_hours():
    assert TIME.images_per_second == pytest.approx(1000 / 9)
    assert TIME.mfu == pytest.approx(1000 / 9 * 1e12 / (10 * 100e12))
    assert TIME.gpu_hours(1_000_000) == pytest.approx(9000 * 10 / 3600)


def test_each_rate_moves_its_term(tmp_path: Path):
    counted = plan(tmp_path, 2, nodes=2, gpus=4, ds=BF16, batch_size=32)

    def terms(**rates: float) -> dict[str, float]:
        return iteration_time(
            counted.config, counted.sharding, counted.count, counted.nodes, Rates(**rates)
        ).terms

    slow = {"memory_tb_s": 1e9, "tflops": 1e-3}
    assert terms(**slow, launch_us=10)["launches"] == 2 * terms(**slow)["launches"]
    assert terms(memory_tb_s=1.4)["memory"] == pytest.approx(2 * terms()["memory"], rel=0.1)
    halved = terms(memory_tb_s=1e9, tflops=2e-3)["compute"]
    assert terms(**slow)["compute"] == pytest.approx(2 * halved)
    assert terms(network_gb_s=20)["network"] == pytest.approx(2 * terms()["network"])
    assert terms(node_gb_s=20)["network"] == terms()["network"]  # two nodes: the slower counts


def test_larger_micro_batches_take_fewer_hours(tmp_path: Path):
    """What is done whatever the samples is done less often."""
    small, large = (
        plan(tmp_path, 2, gpus=2, ds=BF16, micro_batch=n, batch_size=64).time for n in (2, 16)
    )
    assert large.gpu_hours(1000) < 0.5 * small.gpu_hours(1000)


def test_gradients_are_summed_over_ranks_in_every_micro_batch_from_zero_2_on(tmp_path: Path):
    """Bytes a parameter: into a bucket 4, flat 4, to float32 6, divided 8, back 6; summed 12."""
    two = plan(tmp_path, 2, gpus=4, ds={**BF16, **FLOAT32_GRADIENTS}, batch_size=64).sharding
    assert sum_bytes(two, 3) / two.total == 3 * (4 + 4 + 6 + 8 + 6 + 12 / 4)
    half = {**BF16, **FLOAT32_GRADIENTS, "communication_data_type": "bf16"}
    two = plan(tmp_path, 2, gpus=4, ds=half, batch_size=64).sharding
    assert sum_bytes(two, 3) / two.total == 3 * (4 + 4 + 4 + 12 / 4)
    none = plan(tmp_path, 0, gpus=4, batch_size=64).sharding
    assert sum_bytes(none, 3) / none.total == 3 * 12 + 8 + 8 + 8
