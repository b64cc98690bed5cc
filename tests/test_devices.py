"""The device of a rank, and how PyTorch is set up on it. Replaced calls play the GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sid_scale.devices import DeviceError, check_accelerator, own_device
from sid_scale.errors import print_once

FLAGS = {
    torch.backends.cudnn: {"benchmark": True, "allow_tf32": False},
    torch.backends.cuda.matmul: {
        "allow_tf32": False,
        "allow_fp16_reduced_precision_reduction": False,
        "allow_bf16_reduced_precision_reduction": False,
    },
}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """-> what is made the current device. Flags are other than wanted, and are put back."""
    before = [(module, name, getattr(module, name)) for module in FLAGS for name in FLAGS[module]]
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for module, name, _ in before:
        setattr(module, name, not FLAGS[module][name])
    yield current
    for module, name, value in before:
        setattr(module, name, value)


def test_a_rank_has_the_gpu_of_its_number(two_gpus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [own_device()] == two_gpus == [torch.device("cuda", 1)]


def test_on_a_gpu_float32_is_float32_and_cudnn_looks_for_the_fastest_way(two_gpus):
    own_device()
    for module, flags in FLAGS.items():
        assert {name: getattr(module, name) for name in flags} == flags
    # Code that asks in PyTorch's new way has the same answer.
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@pytest.mark.faults
@pytest.mark.parametrize("local_rank", ["2", "7", "-1", "one"])
def test_a_rank_without_a_gpu_is_told(two_gpus, monkeypatch: pytest.MonkeyPatch, local_rank: str):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    told = (
        f"LOCAL_RANK {local_rank} has no GPU on .* sees 2, by CUDA_VISIBLE_DEVICES=4,5: start one"
    )
    with pytest.raises(DeviceError, match=told):
        own_device()
    assert two_gpus == []


@pytest.mark.faults
@pytest.mark.parametrize(("local_rank", "prints"), [("2", True), ("3", False)])
def test_of_ranks_that_are_not_joined_the_first_without_a_gpu_tells(
    two_gpus, monkeypatch: pytest.MonkeyPatch, capsys, local_rank: str, prints: bool
):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("RANK", local_rank)
    monkeypatch.setattr("signal.pthread_sigmask", lambda *_: None)
    monkeypatch.setattr("signal.sigtimedwait", lambda *_: None)
    with pytest.raises(DeviceError) as error:
        own_device()
    print_once(error.value)
    assert ("error: LOCAL_RANK" in capsys.readouterr().err) == prints


@pytest.mark.faults
def test_deepspeed_on_another_device_is_refused():
    check_accelerator(torch.device("cpu"))
    with pytest.raises(DeviceError, match="DeepSpeed takes cpu, and a GPU is here: set DS_ACC"):
        check_accelerator(torch.device("cuda", 0))


ALLOCATOR = """
import os
from sid_scale.cli import main
main(["presets"])
print([os.environ.get(name) for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")])
"""


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({}, ["expandable_segments:True", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, ["", None]),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, [None, "max_split_size_mb:64"]),
    ],
)
def test_segments_of_gpu_memory_grow_unless_the_environment_says_something_else(given, held):
    bare = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    command = [sys.executable, "-c", ALLOCATOR]
    done = subprocess.run(command, env=bare | given, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(held)
