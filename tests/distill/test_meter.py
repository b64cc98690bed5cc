"""Means by name over micro-batches and ranks."""

import pytest
import torch

from sid_scale.distill.meter import Meter, sigma_bins
from tests.devices import DEVICE, copies_from_host
from tests.ranks import run_ranks


@pytest.mark.distributed
def test_means_are_over_all_ranks():
    run_ranks(2, _report)


def _report(rank: int) -> None:
    meter = Meter(torch.device("cpu"))
    for value in (1.0, 2.0):
        meter.add("loss", torch.tensor(value + 10 * rank))
    # rank 0 sees sigma 0.05 and 0.2, rank 1 sees 0.2 twice
    sigma = torch.tensor([0.05, 0.2] if rank == 0 else [0.2, 0.2])
    meter.add_by_sigma("sid", sigma.view(2, 1, 1, 1), torch.tensor([4.0, 1.0 + rank]))
    report = meter.report()
    assert report["loss"] == pytest.approx(6.5)
    told = {name: value for name, value in report.items() if name.startswith("sid")}
    assert told == {
        "sid_by_sigma/0-0.1": pytest.approx(4.0),
        "sid_by_sigma/0.1-0.3": pytest.approx((1 + 4 + 2) / 3),
    }
    assert meter.report() == {}


def test_adding_copies_nothing_from_the_host():
    """It would wait for all that the device still has to do."""
    meter = Meter(DEVICE)
    with copies_from_host() as copies:
        for _ in range(2):
            meter.add("loss", torch.empty((), device=DEVICE))
            meter.add("grad_norm", 1.0)
            meter.add_by_sigma("sid", torch.ones(2, device=DEVICE), torch.ones(2, device=DEVICE))
    assert copies == []


@pytest.mark.distributed
def test_values_that_are_not_finite_count_for_nothing():
    run_ranks(1, _not_finite)


def _not_finite(rank: int) -> None:
    meter = Meter(torch.device("cpu"))
    for value in (1.0, float("nan"), torch.tensor(3.0), torch.tensor(float("inf"))):
        meter.add("loss", value)
    meter.add("norm", float("nan"))
    meter.add_by_sigma("sid", torch.tensor([0.2, 0.5, 0.6]), torch.tensor([float("nan"), 1.0, 2.0]))
    report = meter.report()
    assert report["loss"] == 2.0
    assert report["norm"] != report["norm"]
    assert {name: value for name, value in report.items() if "sid" in name} == {
        "sid_by_sigma/0.3-1": 1.5  # the NaN leaves other bins alone
    }


def test_bins_cover_all_noise_levels():
    assert sigma_bins()[0].startswith("0-")
    assert sigma_bins()[-1].endswith("-inf")
