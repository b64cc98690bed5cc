"""The slowest rank is named, by the time that it works itself."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sid_scale.config.groups import HealthConfig
from sid_scale.distill.ahead import ReadAhead
from sid_scale.distill.loop import train
from sid_scale.health import own_time
from sid_scale.health.own_time import OwnTime
from sid_scale.health.stragglers import Stragglers
from sid_scale.networks.edm2.layers import MPConv
from tests.distill.test_train import records
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare

NAMES = [f"rank {rank} on node{rank // 2}" for rank in range(4)]


def told(seconds: list[list[float]]) -> list[str | None]:
    settings = HealthConfig()
    stragglers = Stragglers(settings.straggler_factor, settings.straggler_intervals)
    return [stragglers.tell(each, NAMES[: len(each)]) for each in seconds]


def test_a_rank_that_stays_slow_is_told_once():
    *before, third, after = told([[1.0, 1.1, 2.2, 0.9]] * 4)
    assert before == [None, None]
    assert after is None
    assert third == (
        "straggler: all ranks wait for rank 2 on node1 (2.2 times): slower than 1.5 times the "
        "median of 1 s in 3 intervals in a row"
    )


def test_of_two_ranks_the_slower_is_told():
    assert "rank 1 on node0 (2 times)" in str(told([[1.0, 2.0]] * 3)[2])


def test_slow_in_turns_is_no_straggler():
    assert told([[1.0, 1.0, 9.0, 1.0], [1.0, 9.0, 1.0, 1.0]] * 3) == [None] * 6
    assert told([[1.0, 1.0, 1.4, 1.2]] * 6) == [None] * 6


def test_who_recovers_and_is_slow_again_is_told_again():
    slow, well = [1.0, 1.0, 1.0, 2.0], [1.0] * 4
    assert [bool(line) for line in told([slow] * 3 + [well] + [slow] * 3)] == [
        *(False, False, True, False),
        *(False, False, True),
    ]


def test_layers_whose_forward_pass_is_computed_again_stay_timed():
    """PyTorch breaks that off, in a layer, when it has what the backward pass needs."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    own = OwnTime(torch.device("cpu"))
    own.follow(network, gathered=True)
    for _ in range(3):
        x = torch.ones(2, 4, requires_grad=True)
        checkpoint(network, x, use_reentrant=False).sum().backward()
        assert own.take() > 0


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def moving(self, seconds: float) -> Callable[..., None]:
        """A hook that takes its time."""

        def hook(*_: object) -> None:
            self.now += seconds

        return hook


class Working(nn.Module):
    """Takes a second."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += 1
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(own_time, "time", clock)
    return clock


def test_own_time_is_that_of_data_and_forward_passes(clock: Clock):
    own = OwnTime(torch.device("cpu"))
    network = nn.Sequential(Working(clock), nn.Sequential(Working(clock)))
    own.follow(network, gathered=False)
    clock.now += 100  # a collective
    network(torch.zeros(1))
    assert own.take() == 2
    assert own.take() == 0

    def items() -> Iterator[int]:
        for number in range(3):
            clock.now += 1
            yield number

    for _ in own.waiting_for(items()):
        clock.now += 100
    assert own.take() == 3


def test_what_is_forgotten_does_not_count(clock: Clock):
    own, network = OwnTime(torch.device("cpu")), Working(clock)
    own.follow(network, gathered=False)
    network(torch.zeros(1))
    own.forget()
    assert own.take() == 0


def test_own_time_leaves_out_what_gathers_weights(clock: Clock):
    own = OwnTime(torch.device("cpu"))
    network = nn.Sequential(Working(clock), nn.Sequential(Working(clock)))
    for module in network.modules():
        module.register_forward_pre_hook(clock.moving(100))
        module.register_forward_hook(clock.moving(100))
    own.follow(network, gathered=True)
    network(torch.zeros(1))
    assert own.take() == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("slow"))
    # So small weights as these would stay on all ranks.
    fetched = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
    zero = {"zero_optimization": {"stage": 3, **fetched}}
    (folder / "stage3.json").write_text(json.dumps(zero))
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("slow_rank", "what", "stage"), [(0, "data", 2), (1, "layers", 2), (1, "layers", 3)]
)
def test_the_rank_that_is_slow_is_named(folder: Path, slow_rank: int, what: str, stage: int):
    run_dir = folder / f"{what}-{stage}"
    run_ranks(2, _train_slowly, folder, run_dir, slow_rank, what, stage)
    for record in records(run_dir):
        assert record["step_seconds/slowest_rank"] == slow_rank
        assert record["step_seconds/max"] == 3 * record["step_seconds/median"] > 0


def _train_slowly(
    rank: int, folder: Path, run_dir: Path, slow_rank: int, what: str, stage: int
) -> None:
    """By a clock that no load of the machine moves: a slow rank takes three times as long."""
    owner, name = (ReadAhead, "__next__") if what == "data" else (MPConv, "forward")
    work, clock = getattr(owner, name), Clock()

    def timed(*args, **kwargs):
        clock.now += 3 if rank == slow_rank else 1
        return work(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, timed)
        patch.setattr(own_time, "time", clock)
        settings = {"run_dir": run_dir, "deepspeed": folder / f"stage{stage}.json"}
        quiet = {"log__samples_every_images": 0, "checkpoint__every_images": 1000}
        train(config(folder, **settings, **quiet, log__every_images=16), joined())
