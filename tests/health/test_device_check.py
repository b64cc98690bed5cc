"""Every device is tried before a run begins; one that fails is named."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.devices import SickNodeError
from sid_scale.health import device_check
from sid_scale.health.device_check import Finding, check_devices, judge, signs
from sid_scale.ranks import Ranks
from tests.ranks import joined, run_ranks

SOUND = Finding("node1", "cuda:0", (), False, 2e12)


@pytest.mark.parametrize("size", [128, 2048])
def test_products_are_exact_in_every_dtype_and_order(size: int):
    a, b = signs(size, 31), signs(size, 17)
    product = a @ b
    assert product.abs().max() <= 256  # whole numbers up to there are bfloat16's
    order = torch.arange(size).flip(0)
    assert torch.equal(a[:, order] @ b[order], product)
    assert torch.equal((a.bfloat16() @ b.bfloat16()).float(), product)


@pytest.mark.parametrize(("ranks", "devices"), [(1, "1 device"), (2, "2 devices")])
def test_sound_devices_are_told_and_nothing_random_changes(ranks: int, devices: str):
    run_ranks(ranks, _sound, devices)


def _sound(rank: int, devices: str) -> None:
    before = torch.get_rng_state()
    assert check_devices(joined()).startswith(f"checked {devices} in ")
    assert torch.equal(torch.get_rng_state(), before)


def wrong_product() -> None:
    right = torch.Tensor.__matmul__

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result = right(a, b)
        if result.ndim == 2:
            result[3, 5] += 1
        return result

    torch.Tensor.__matmul__ = product  # type: ignore[method-assign]


def wrong_copy() -> None:
    right = torch.Tensor.copy_

    def copy(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        right(self, source)[1000] ^= 4
        return self

    torch.Tensor.copy_ = copy  # type: ignore[method-assign]


def failing_device() -> None:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")

    torch.Tensor.__matmul__ = product  # type: ignore[method-assign]


FAULTS = {
    wrong_product: "1 of 1 products of two float32 matrices are wrong; 1 of 1 products of two "
    "bfloat16 matrices are wrong",
    wrong_copy: "a copy of memory differs from what was copied",
    failing_device: "CUDA error: unspecified launch failure",
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_device_that_fails_is_named_by_every_rank(tmp_path: Path, fault):
    run_ranks(2, _with_fault, tmp_path, fault)
    told = (tmp_path / "1").read_text()
    assert told == (
        f"rank 1 on node7, cpu, is at fault: {FAULTS[fault]}\n"
        "start without node7, or as things are by health.check_devices=false"
    )
    if fault is not failing_device:  # then the others end as at any rank's error
        assert (tmp_path / "0").read_text() == told


def _with_fault(rank: int, folder: Path, fault) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMD_NODENAME", f"node{6 + rank}")
        if rank == 1:
            fault()
        if rank == 0 and fault is failing_device:
            return
        with pytest.raises(SickNodeError) as error:
            check_devices(joined())
    assert error.value.sick_nodes == ("node7",)
    assert not error.value.is_user_error
    (folder / str(rank)).write_text(str(error.value))


def test_a_slow_memory_is_a_fault_beside_faster_ones():
    slow = SOUND._replace(node="node2", bandwidth=0.4e12)
    with pytest.raises(SickNodeError, match="rank 1 on node2, cuda:0, is at fault: it copies"):
        judge([SOUND, slow])
    judge([slow, slow])
    judge([SOUND, SOUND._replace(node="node2", bandwidth=1e12)])  # another model of GPU


def test_the_memory_of_a_cpu_is_not_compared():
    run_ranks(2, _one_slow_copy)


def _one_slow_copy(rank: int) -> None:
    """Other processes on the machine make one rank's copies slow."""
    right = torch.Tensor.copy_

    def copy(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        for _ in range(50 * rank):
            right(self, source)
        return right(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy)
        assert check_devices(joined()).endswith("products, copies and sums are right")


def test_a_wrong_sum_blames_no_node_if_all_have_it():
    wrong = SOUND._replace(sum_is_wrong=True)
    with pytest.raises(SickNodeError, match="to blame cannot be told") as error:
        judge([wrong, wrong._replace(node="node2")])
    assert error.value.sick_nodes == ()
    with pytest.raises(SickNodeError, match="rank 1 on node2") as error:
        judge([SOUND, wrong._replace(node="node2")])
    assert error.value.sick_nodes == ("node2",)


def test_a_wrong_sum_is_that_of_the_device_that_computes_wrongly():
    wrong = SOUND._replace(sum_is_wrong=True)
    with pytest.raises(SickNodeError) as error:
        judge([wrong, wrong._replace(node="node2", faults=("it computes wrongly",))])
    assert error.value.sick_nodes == ("node2",)
    assert "node1" not in str(error.value)


def test_a_wrong_sum_is_seen(monkeypatch):
    def all_reduce(numbers: torch.Tensor) -> None:
        numbers[-1] += 1

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert not device_check._sums_rightly(Ranks(0, 1, torch.device("cpu")))
