"""A quick check of every device, before it computes for weeks.

A device multiplies matrices of small integers, copies a buffer and takes part in a sum: all of
which have one exact result, in any order of adding. Nothing here is random.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median_high
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.devices import SickNodeError, node_name, synchronize
from sid_scale.errors import first_line
from sid_scale.ranks import Ranks

PRODUCTS = {"cuda": (2048, 8), "cpu": (128, 1)}  # rows and columns, and how often
COPIED = {"cuda": 2**28, "cpu": 2**23}  # bytes
COPIES = {"cuda": 20, "cpu": 1}
SUMMED = 2**16  # numbers
SLOW = 0.25  # of the median memory bandwidth: less is a fault


class Finding(NamedTuple):
    """What one rank has found about its device."""

    node: str
    device: str
    faults: tuple[str, ...]  # of the device itself
    sum_is_wrong: bool  # which any of the ranks may be to blame for
    bandwidth: float | None  # of a GPU's memory, bytes a second; a CPU's varies with its load


def check_devices(ranks: Ranks) -> str:
    """Tries every rank's device; returns a line for the log. Collective.

    Raises:
        SickNodeError: a device computes wrongly, or a GPU's memory is far slower than that of the
            others. It names them.
    """
    began = time.perf_counter()
    findings: list[Finding] = [_look(ranks)] * ranks.world_size
    dist.all_gather_object(findings, findings[ranks.rank])
    judge(findings)
    devices = "1 device" if len(findings) == 1 else f"{len(findings)} devices"
    told = f"checked {devices} in {time.perf_counter() - began:.2f} s: products, "
    told += "copies and sums are right"
    if rates := _bandwidths(findings):
        told += f"; memory copies {rates[0] / 1e9:.4g} to {rates[-1] / 1e9:.4g} GB/s"
    return told


def judge(findings: Sequence[Finding]) -> None:
    """Compares what all ranks have found, in the order of ranks.

    Raises:
        SickNodeError: a device is at fault.
    """
    median = median_high(_bandwidths(findings) or [0.0])
    faults = [list(finding.faults) for finding in findings]
    for finding, found in zip(findings, faults, strict=True):
        if finding.bandwidth is not None and finding.bandwidth < SLOW * median:
            found.append(
                f"it copies memory at {finding.bandwidth / 1e9:.3g} GB/s, other devices at "
                f"{median / 1e9:.3g}"
            )
    sick = {finding.node for finding, found in zip(findings, faults, strict=True) if found}
    if not sick:  # else the sum is wrong for what is known
        wrong = {finding.node for finding in findings if finding.sum_is_wrong}
        # All nodes may have it from any one of them.
        sick = wrong if len(wrong) < len({finding.node for finding in findings}) else set()
        for finding, found in zip(findings, faults, strict=True):
            if finding.sum_is_wrong:
                found.append("a sum over all ranks is wrong there")
    lines = [
        _told(rank, finding.node, finding.device, found)
        for rank, (finding, found) in enumerate(zip(findings, faults, strict=True))
        if found
    ]
    if lines:
        raise SickNodeError("\n".join(lines) + _remedy(sick), sorted(sick))


def _bandwidths(findings: Sequence[Finding]) -> list[float]:
    return sorted(finding.bandwidth for finding in findings if finding.bandwidth is not None)


def _told(rank: int, node: str, device: str, faults: Sequence[str]) -> str:
    return f"rank {rank} on {node}, {device}, is at fault: {'; '.join(faults)}"


def _remedy(nodes: set[str]) -> str:
    if not nodes:
        return "\nwhich node is to blame cannot be told: try them one by one"
    named = ", ".join(sorted(nodes))
    return f"\nstart without {named}, or as things are by health.check_devices=false"


def _look(ranks: Ranks) -> Finding:
    device, name = ranks.device, str(ranks.device)
    try:
        if device.type == "cuda":
            name = f"{device} ({torch.cuda.get_device_name(device)})"
        faults = list(_product_faults(device))
        bandwidth, is_equal = _copy(device)
        if not is_equal:
            faults.append("a copy of memory differs from what was copied")
    except RuntimeError as error:  # the device's own word; nothing works there any more
        fault = _told(ranks.rank, node_name(), name, [first_line(error)])
        raise SickNodeError(fault + _remedy({node_name()}), [node_name()]) from error
    finding = Finding(node_name(), name, tuple(faults), not _sums_rightly(ranks), bandwidth)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return finding


def _product_faults(device: torch.device) -> Iterator[str]:
    """What is wrong with products of matrices, in float32 and in half precision.

    A product C of A and B is compared without another product: C v is A (B v).
    """
    size, times = PRODUCTS[device.type]
    a, b = signs(size, 31), signs(size, 17)
    v = torch.arange(1.0, size + 1, dtype=torch.float64)
    expected = a.double() @ (b.double() @ v)
    for dtype in (torch.float32, _half(device)):
        on_device = a.to(device, dtype), b.to(device, dtype)
        products = [on_device[0] @ on_device[1] for _ in range(times)]
        wrong = [int((p.cpu().double() @ v != expected).sum()) for p in products]
        if any(wrong):
            often = f"{sum(map(bool, wrong))} of {times} products"
            yield f"{often} of two {str(dtype).removeprefix('torch.')} matrices are wrong"


def signs(size: int, factor: int) -> Tensor:
    """A square matrix of -1, 0 and 1, float32, another one for another factor.

    Elements of a product of two are exact in every dtype, bfloat16 too: they stay below 256.
    """
    number = torch.arange(size * size, dtype=torch.int64)
    mixed = (number * number * factor + number * 7919) % 104_729
    return (mixed % 3 - 1).reshape(size, size).float()


def _half(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def _copy(device: torch.device) -> tuple[float | None, bool]:
    """Bandwidth of a GPU's memory in bytes a second, read and written, None of a CPU's; and whether
    a copy is equal."""
    numbers = torch.arange(COPIED[device.type] // 4, dtype=torch.int32)
    source = numbers.to(device, copy=True)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(COPIES[device.type]):
        synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    # The best: other processes may have been in the way of the rest.
    bandwidth = 2 * COPIED[device.type] / min(seconds) if device.type == "cuda" else None
    return bandwidth, torch.equal(target.cpu(), numbers)


def _sums_rightly(ranks: Ranks) -> bool:
    """Whether a sum over all ranks is what it should be. Collective."""
    pattern = torch.arange(SUMMED, dtype=torch.float32, device=ranks.device) % 7
    numbers = pattern * (ranks.rank + 1)
    dist.all_reduce(numbers)
    return torch.equal(numbers, pattern * (ranks.world_size * (ranks.world_size + 1) // 2))
