"""The device of each rank, compared before the ranks are joined.

Joining over NCCL would wait for a rank without a GPU until its time is up. So the ranks compare
what they have found by the key-value store where they meet. Nodes on which a rank has no GPU are at
fault if other nodes have one for each rank. What all nodes lack is the settings' fault.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from sid_scale.devices import DeviceError, SickNodeError, node_name, own_device
from sid_scale.errors import first_line

FOUND, AGREED = "device/{}", "devices agreed"  # keys
UNSEEN = "PyTorch sees no GPU there"


class Found(NamedTuple):
    """What one rank has found."""

    node: str
    kind: str  # "cuda" or "cpu"; empty: no device that it can use
    fault: str = ""  # why there is none
    cuda_failed: bool = False  # that is CUDA's own word


def agreed_device(store: dist.Store, rank: int, world_size: int) -> torch.device:
    """This rank's device, once all ranks are known to have one of the same kind.

    Args:
        store: all ranks have one, and nothing else uses these keys of it.

    Raises:
        SickNodeError, DeviceError: see `compare`. Rank 0 raises it; the others wait to be ended.
    """
    device = torch.device("cpu")
    try:
        device = own_device()
        found = Found(node_name(), device.type)
    except (DeviceError, RuntimeError) as error:
        found = Found(node_name(), "", first_line(error), not isinstance(error, DeviceError))
    store.set(FOUND.format(rank), json.dumps(found))
    if rank == 0:
        each = store.multi_get([FOUND.format(other) for other in range(world_size)])
        compare([Found(*json.loads(one)) for one in each])
        store.set(AGREED, "")
    store.wait([AGREED])
    return device


def compare(found: Sequence[Found]) -> None:
    """Compares what all ranks have found, in the order of ranks.

    Raises:
        SickNodeError: some nodes lack a GPU, or CUDA has failed on all.
        DeviceError: all nodes lack a GPU for some rank.
    """
    on_gpus = any(one.kind == "cuda" or one.fault for one in found)
    without: dict[str, str] = {}  # by node, its first rank's
    for rank, one in enumerate(found):
        if one.fault or (on_gpus and one.kind == "cpu"):
            without.setdefault(one.node, f"rank {rank} on {one.node}: {one.fault or UNSEEN}")
    if not without:
        return
    told = "\n".join(without.values())
    if without.keys() < {one.node for one in found}:
        raise SickNodeError(
            f"{told}\nother nodes have a GPU for each of their ranks: start without "
            f"{', '.join(sorted(without))}",
            sorted(without),
        )
    if any(one.cuda_failed for one in found):
        raise SickNodeError(f"{told}\nwhich node is to blame cannot be told", [])
    raise DeviceError(told)
