"""One rank, in the test's own process: quick where what several do is no matter."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from sid_scale.ranks import Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()
