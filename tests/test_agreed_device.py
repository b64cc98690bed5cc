"""Ranks without a GPU: whose fault that is, by what all ranks have found."""

import pytest

from sid_scale.agreed_device import Found, compare
from sid_scale.devices import DeviceError, SickNodeError

LACKS = "LOCAL_RANK 1 has no GPU, where a process sees 1: start one rank for each"
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"


def gpu(node: str) -> Found:
    return Found(node, "cuda")


def cpu(node: str) -> Found:
    return Found(node, "cpu")


def lacking(node: str) -> Found:
    return Found(node, "", LACKS)


def failed(node: str) -> Found:
    return Found(node, "", BUSY, cuda_failed=True)


@pytest.mark.parametrize("device", [gpu, cpu])
def test_ranks_that_have_the_same_kind_agree(device):
    compare([device("a"), device("a"), device("b"), device("b")])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("found", "sick", "told"),
    [
        (
            [gpu("a"), gpu("a"), gpu("b"), lacking("b")],
            ("b",),
            f"rank 3 on b: {LACKS}\nother nodes have a GPU for each of their ranks: start without",
        ),
        ([gpu("a"), gpu("a"), cpu("b"), cpu("b")], ("b",), "rank 2 on b: PyTorch sees no GPU"),
        ([cpu("c"), lacking("b"), gpu("a")], ("b", "c"), "start without b, c"),
        ([gpu("a"), failed("b")], ("b",), f"rank 1 on b: {BUSY}"),
        ([failed("a"), failed("b")], (), "which node is to blame cannot be told"),
    ],
)
def test_nodes_that_lack_what_others_have_are_to_blame(
    found: list[Found], sick: tuple[str, ...], told: str
):
    with pytest.raises(SickNodeError) as error:
        compare(found)
    assert error.value.sick_nodes == sick
    assert told in str(error.value)
    assert not error.value.is_user_error


@pytest.mark.faults
@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([gpu("a"), lacking("a"), gpu("b"), lacking("b")], f"rank 1 on a: {LACKS}"),
        ([gpu("a"), lacking("a")], LACKS),
        ([gpu("a"), cpu("a")], "rank 1 on a: PyTorch sees no GPU there"),
        ([cpu("a"), lacking("b")], "rank 1 on b"),
    ],
)
def test_what_all_nodes_lack_is_not_their_fault(found: list[Found], told: str):
    with pytest.raises(DeviceError) as error:
        compare(found)
    assert told in str(error.value)
    assert error.value.is_user_error
