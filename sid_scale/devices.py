"""The device of this process, and how PyTorch computes there: all that is set is set here."""

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sid_scale.errors import SidScaleError

if TYPE_CHECKING:
    import torch

# What decides in the environment how PyTorch's allocator works. The second is the new name, which
# not every version reads.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


# What CUDA says when a GPU itself has failed, rather than a program.
FAULTS = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "no CUDA-capable device",
    "device(s) is/are busy or unavailable",
)


class DeviceError(SidScaleError):
    """A rank for which there is no device, or not the one that DeepSpeed takes."""

    exit_status = 2

    def __init__(self, message: str, *, told_by_this_rank: bool = False):
        super().__init__(message)
        self.told_by_this_rank = told_by_this_rank


class SickNodeError(SidScaleError):
    """A device does not compute as it should; another start, on other nodes, may do better."""

    is_user_error = False

    def __init__(self, message: str, nodes: Sequence[str]):
        super().__init__(message)
        self.sick_nodes = tuple(nodes)


def node_name() -> str:
    """What the scheduler calls this machine; without one, its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def is_fault_of_device(error: BaseException) -> bool:
    """Whether an error is CUDA's word that a GPU has failed."""
    return isinstance(error, RuntimeError) and any(fault in str(error) for fault in FAULTS)


def set_allocator() -> None:
    """Lets segments of GPU memory grow, unless the environment says something else.

    Networks' phases need blocks of many sizes; segments of fixed sizes leave gaps between them.
    To be called before PyTorch is imported.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def own_device() -> "torch.device":
    """This process's GPU, which is then the current one and set up; the CPU where there is none.

    Raises:
        DeviceError: the launcher gave it a GPU that is not there.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, gpus = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if not local_rank.isdecimal() or int(local_rank) >= gpus:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if shown is None else f", by CUDA_VISIBLE_DEVICES={shown}"
        raise DeviceError(
            f"LOCAL_RANK {local_rank} has no GPU on {socket.gethostname()}, where a process sees "
            f"{gpus}{seen}: start one rank for each (--num_gpus of deepspeed, --nproc_per_node of "
            "torchrun)",
            told_by_this_rank=local_rank == str(gpus),  # the first that has none
        )
    device = torch.device("cuda", int(local_rank))
    torch.cuda.set_device(device)
    _set_up_cuda()
    return device


def synchronize(device: "torch.device") -> None:
    """Waits until a GPU has done what was asked of it; a CPU has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def check_accelerator(device: "torch.device") -> None:
    """Whether DeepSpeed computes on the same device.

    Raises:
        DeviceError: it does not.
    """
    from deepspeed import get_accelerator

    theirs = get_accelerator().device_name()
    if theirs == device.type:
        return
    given = os.environ.get("DS_ACCELERATOR")
    why = "takes" if given is None else f"is told by DS_ACCELERATOR={given} to take"
    here = "a GPU is here" if device.type == "cuda" else "PyTorch sees no GPU here"
    raise DeviceError(
        f"DeepSpeed {why} {theirs}, and {here}: set DS_ACCELERATOR={device.type}, or remove it"
        + (" (CUDA_VISIBLE_DEVICES='' hides the GPUs)" if device.type == "cuda" else "")
    )


def _set_up_cuda() -> None:
    """float32 is float32, sums in half precision are float32, and cuDNN looks for the fastest way.

    As EDM2, SiD and SiDA have it. These are the flags that PyTorch's own and other code reads;
    `torch.backends.fp32_precision` beside them makes reading them an error.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # convolutions
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
