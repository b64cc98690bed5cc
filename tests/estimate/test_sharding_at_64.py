"""The state of one of 64 ranks: DeepSpeed's engines over a process group that sends nothing."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing._internal.distributed.fake_pg import FakeStore

from sid_scale.estimate.state import Sharding, state_bytes
from sid_scale.estimate.step import RunNetworks
from sid_scale.networks.edm2.network import EDM2
from sid_scale.ranks import tell_deepspeed
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import local_fragments
from sid_scale.zero.settings import read_deepspeed_json
from tests.estimate.plans import BF16, FLOAT32_GRADIENTS
from tests.estimate.test_agreement import SMALL_BUCKETS, nbytes
from tests.tiny import ARCHITECTURE, write_deepspeed_json

pytestmark = pytest.mark.distributed
RANKS = 64


def test_a_rank_of_64_holds_its_share(tmp_path: Path):
    mp.start_processes(_one_of_64, (tmp_path,), nprocs=1, start_method="forkserver")


def _one_of_64(_: int, folder: Path) -> None:
    os.environ.update(RANK="5", LOCAL_RANK="0", WORLD_SIZE=str(RANKS))
    dist.init_process_group("fake", rank=5, world_size=RANKS, store=FakeStore())
    tell_deepspeed("gloo")
    for stage in (1, 2, 3):
        zero = {"stage": stage, **SMALL_BUCKETS}
        more = FLOAT32_GRADIENTS if stage > 1 else {}
        ds = write_deepspeed_json(folder, stage, **BF16, **more, zero_optimization=zero)
        settings = read_deepspeed_json(ds, 2, 1)
        network = EDM2(ARCHITECTURE, torch.bfloat16).to(torch.bfloat16)
        networks = RunNetworks({"generator": network}, {})
        expected = state_bytes(Sharding.of(networks, settings, RANKS))
        weights = {name: p.detach().clone() for name, p in network.named_parameters()}
        engine = ShardedNetwork(network, settings, AdamConfig(1e-4), weights).engine
        held = {
            "weights": nbytes(p.ds_tensor if stage == 3 else p for p in engine.module.parameters()),
            "optimizer": 3 * nbytes(f.flat for f in local_fragments(engine)),
        }
        if stage == 3:
            held["gradients"] = nbytes([engine.optimizer.grad_partitions_flat_buffer])
        for kind, of_kind in held.items():
            assert of_kind == pytest.approx(expected[kind], rel=0.02), (stage, kind)
