"""Ranks that share a host begin without a copy of the network each.

On a GPU, what stays of a network is on the device, as is what collectives take. Here all is in host
memory, so what is looked at is what reading a file and filling a network from it take for a while.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import set_masters
from sid_scale.zero.settings import read_deepspeed_json
from tests.ranks import run_ranks
from tests.tiny import tiny_folder, write_deepspeed_json

pytestmark = pytest.mark.distributed

RANKS = 4
ARCHITECTURE = EDM2Architecture(
    img_resolution=16, img_channels=4, label_dim=0, model_channels=64, logvar_channels=0
)


class Peak:
    growth = 0  # bytes


@contextmanager
def peak_of_private_memory() -> Iterator[Peak]:
    """Inside, the largest growth of memory that this process alone has is recorded."""
    peak, done, began = Peak(), threading.Event(), private_bytes()

    def watch() -> None:
        while not done.wait(1e-3):
            peak.growth = max(peak.growth, private_bytes() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return 1024 * int(kilobytes)


def test_masters_are_filled_from_one_file_that_all_ranks_map(tmp_path: Path):
    start = tiny_folder(architecture=ARCHITECTURE)
    halves = {name: tensor.half() for name, tensor in start.state.items()}
    save_network(tmp_path / "network", NetworkFolder(ARCHITECTURE, halves))
    run_ranks(RANKS, _fill, tmp_path)


def _fill(rank: int, folder: Path) -> None:
    start = load_network(folder / "network")
    network = start.build_zero(torch.float32, torch.float32, "cpu")
    sharded = ShardedNetwork(
        network,
        read_deepspeed_json(write_deepspeed_json(folder / str(rank), 2), 1, 1),
        AdamConfig(1e-3),
        start.state,
        forward_scales=network.forward_scales(),
        forced_norm=True,
    )
    float32 = 4 * sum(p.numel() for p in sharded.module.parameters())
    with peak_of_private_memory() as filling:
        again = load_network(folder / "network")
        set_masters(sharded.engine, again.state)
        sharded.forward_weights.normalise_masters()
    with peak_of_private_memory() as freezing:
        frozen = again.build(torch.bfloat16)
    own = sum(p.nbytes for p in frozen.parameters())
    peaks = torch.tensor([filling.growth, freezing.growth - own])
    dist.all_reduce(peaks)
    assert float32 > 50e6
    assert peaks[0] < 1.5 * float32
    assert peaks[1] < 1.5 * float32
