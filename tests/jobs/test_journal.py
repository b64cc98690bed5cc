"""What an attempt of a run leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.devices import SickNodeError
from sid_scale.errors import SidScaleError
from sid_scale.jobs.attempts import FAILED, STOPPED, newest_attempt, read_outcome
from sid_scale.jobs.journal import Journal
from sid_scale.ranks import Ranks


@pytest.fixture
def alone() -> Iterator[Ranks]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def test_a_new_life_does_not_begin_with_the_end_of_another(
    tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
):
    """As when two runs follow each other in one interactive allocation, or in one second."""
    monkeypatch.setattr("sid_scale.jobs.journal.attempt_name", lambda job: "17-0")
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.open(alone)
        assert read_outcome(newest_attempt(tmp_path)) is None
        journal.ended(STOPPED, "SIGTERM", 8)
        assert read_outcome(newest_attempt(tmp_path)).reason == "SIGTERM"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("error", "where", "is_user_error", "sick_nodes"),
    [
        (SidScaleError("no such file"), "rank 0 on node7", True, ()),
        (SickNodeError("a product is wrong", ["node9"]), "", False, ("node9",)),
        (RuntimeError("connection closed by peer"), "rank 0 on node7", False, ()),
        (
            RuntimeError("CUDA error: uncorrectable ECC error encountered"),
            "rank 0 on node7",
            False,
            ("node7",),
        ),
    ],
)
def test_an_error_tells_which_nodes_are_to_blame(
    tmp_path: Path,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    where: str,
    is_user_error: bool,
    sick_nodes: tuple[str, ...],
):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    journal = Journal(tmp_path)
    journal.open(alone)
    journal.failed(error, "")
    outcome = read_outcome(newest_attempt(tmp_path))
    assert (outcome.kind, outcome.where, outcome.is_user_error) == (FAILED, where, is_user_error)
    assert outcome.sick_nodes == sick_nodes


@pytest.mark.faults
def test_in_a_job_an_error_before_the_ranks_are_joined_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    error = SickNodeError("rank 9 on node9: PyTorch sees no GPU there", ["node9"])
    Journal(tmp_path).failed(error, "")
    assert not list(tmp_path.iterdir())  # started by hand: it is on the console
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    Journal(tmp_path).failed(error, "")
    outcome = read_outcome(tmp_path / "logs" / "17-2")
    assert (outcome.kind, outcome.is_user_error, outcome.sick_nodes) == (FAILED, False, ("node9",))
