"""Titles of plots and labels of curves."""

import pytest

from sid_scale.evaluate.features import HIGHER_IS_BETTER, METRICS
from sid_scale.report.measurements import metric_kind
from sid_scale.report.titles import loss_title, titled


@pytest.mark.parametrize(
    ("name", "title", "label"),
    [
        ("grad_norm/fake_score", "Gradient norm", "fake score"),
        ("checkpoint/pause_seconds", "Pause for a checkpoint (s)", "pause seconds"),
        ("density_ratio/max", "Density ratio", "max"),
        ("density_ratio/effective_share", "Effective share of the batch", "effective share"),
        ("sid_loss_by_sigma/0.1-0.3", "SiD loss by noise level", "sigma 0.1 to 0.3"),
        ("sid_loss_by_sigma/30-inf", "SiD loss by noise level", "sigma above 30"),
        ("memory_gb", "Peak memory (GB)", "memory gb"),
        ("queue_seconds", "Queue (s)", "queue seconds"),
        ("step_seconds/max", "A rank's own time per iteration (s)", "max"),
        ("gan_share", "GAN share", "GAN share"),
        ("something_new/a_part", "Something new", "a part"),
        ("", "", ""),
    ],
)
def test_a_quantity_has_a_title_with_its_unit_and_a_label(name: str, title: str, label: str):
    assert titled(name) == (title, label)


def test_quantities_of_other_units_do_not_share_a_plot():
    names = ("checkpoint/pause_seconds", "checkpoint/gigabytes", "checkpoint/write_seconds")
    assert len({titled(name).title for name in names}) == 3


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_title_and_says_what_is_better(metric: str):
    title, better = metric_kind(metric)
    assert "_" not in title
    assert better == ("higher" if metric in HIGHER_IS_BETTER else "lower")


def test_a_metric_by_an_encoder_of_the_users_names_it():
    assert metric_kind("kd_clip") == ("KD-clip", "lower")
    assert metric_kind("never_heard_of") == ("never_heard_of", "")


def test_a_loss_is_called_one():
    assert loss_title("loss/fake_score") == "Fake score loss"
    assert loss_title("loss/generator_sid") == "Generator loss, SiD term"
    assert loss_title("loss/x") == "X loss"
