"""One micro-batch of a method, counted from its own losses."""

from pathlib import Path

import pytest

from sid_scale.demo.prepare import CLASSIFIER
from sid_scale.estimate.count import CONVOLUTION, MATMUL, Phase
from sid_scale.estimate.report import Plan, make_plan
from sid_scale.estimate.step import CountError, fixed_and_per_sample, total
from sid_scale.methods.sid import SiD
from tests.estimate.plans import BF16, plan
from tests.tiny import config, freezing_generator, write_deepspeed_json, write_teacher

# Gflops of a forward pass in EDM2's paper (arXiv 2312.02696, Tables 2 and 3), which counts a
# multiplication with its addition as one.
PUBLISHED = {
    "edm2-img512-s-2147483-0.130": 102,
    "edm2-img512-xxl-0939524-0.070": 552,
    "edm-imagenet-64x64-cond-adm": 110,
}


def flop(counted: Plan, update: str, part: str) -> float:
    """Of a phase, for each sample."""
    work = counted.count.work.items()
    return sum(w.flop for (at, _), w in work if at == (update, part)) / counted.count.samples


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_forward_pass_is_what_the_paper_says(tmp_path: Path, name: str):
    has_head = name.startswith("edm2")
    settings = {"teacher": f"teachers/{name}", "objective__logvar_weighting": str(has_head).lower()}
    counted = plan(tmp_path, 2, ds=BF16, **settings)
    whole = flop(counted, "generator", "teacher forward")
    assert whole / 2e9 == pytest.approx(PUBLISHED[name], rel=0.02)
    # Eleven forward passes, and three of the encoder on real images.
    encoder = flop(counted, "fake_score", "fake_score forward") - whole
    of_all = counted.count.total.flop / counted.count.samples
    assert of_all == pytest.approx(11 * whole + 3 * encoder, rel=0.01)


def test_phases_are_the_methods_calls_of_networks(tmp_path: Path):
    counted = plan(tmp_path, 2, ds=BF16)
    assert set(counted.count.peak) == {
        *(Phase("fake_score", part) for part in ("loss", "generator forward", "backward")),
        *(Phase("generator", part) for part in ("loss", "generator forward", "backward")),
        Phase("fake_score", "fake_score forward"),
        Phase("generator", "teacher forward"),
        Phase("generator", "fake_score forward"),
    }
    for update in ("fake_score", "generator"):
        assert flop(counted, update, "loss") == 0
        assert flop(counted, update, "backward") > flop(counted, update, "generator forward") > 0


def test_work_is_a_fixed_part_and_a_part_of_each_sample(tmp_path: Path):
    two, four, eight = (plan(tmp_path, 2, ds=BF16, micro_batch=n).count for n in (2, 4, 8))
    fixed, per_sample = fixed_and_per_sample(two, four)
    for name in ("flop", "nbytes", "kernels"):
        expected = getattr(total(fixed), name) + 8 * getattr(total(per_sample), name)
        assert getattr(eight.total, name) == pytest.approx(expected, rel=1e-3)
    # Products read their weights whatever the samples, and compute nothing without any.
    assert total(fixed).flop == pytest.approx(0, abs=1)
    weights = sum(w.nbytes for (_, k), w in fixed.items() if k in (CONVOLUTION, MATMUL))
    assert weights > 10 * two.work[Phase("generator", "loss"), "copy"].nbytes > 0


def test_a_generator_of_several_steps_is_counted_at_the_average_of_them(tmp_path: Path):
    one, four = (plan(tmp_path, 2, ds=BF16, steps=steps) for steps in (1, 4))
    forward = flop(one, "generator", "generator forward")
    more = four.count.total.flop / 2 - one.count.total.flop / 2
    # Both updates run the generator 2.5 times on average instead of once.
    assert more == pytest.approx(2 * 1.5 * forward, rel=1e-6)


def test_a_recomputed_forward_is_work_but_not_the_models(tmp_path: Path):
    keep, again = (
        plan(tmp_path, 2, ds=BF16, activations=f"{{generator: {how}, teacher: {how}}}").count
        for how in ("keep", "checkpoint")
    )
    assert again.total.flop > 1.02 * keep.total.flop
    assert again.model_flop == pytest.approx(keep.model_flop, rel=0.01)
    assert max(again.peak.values()) < 0.9 * max(keep.peak.values())


def test_an_update_is_the_same_work_however_many_there_are(tmp_path: Path):
    """An image's work in the log of a run: what the updates that were made add up to."""
    one, three = (
        plan(tmp_path, 2, ds=BF16, method="sid", objective__fake_score_updates=number).count
        for number in (1, 3)
    )
    assert three.model_flop_of_updates == pytest.approx(one.model_flop_of_updates)
    of_updates = one.model_flop_of_updates
    assert sum(of_updates.values()) == pytest.approx(one.model_flop / one.samples)
    more = 3 * of_updates["fake_score"] + of_updates["generator"]
    assert more == pytest.approx(three.model_flop / three.samples)


def test_work_of_an_update_that_is_seldom_made_is_no_less(tmp_path: Path):
    write_teacher(tmp_path / "teacher")
    (tmp_path / "run.yaml").write_text("")
    ds = write_deepspeed_json(tmp_path, 2)
    gdd = {"method": "gdd", "objective.feature_networks.digits": CLASSIFIER}
    often, seldom = (
        make_plan(config(tmp_path, warm_up=False, deepspeed=ds, **gdd, **interval), 1, 1).count
        for interval in ({"objective.r1_interval": 1}, {"objective.r1_interval": 8})
    )
    assert seldom.model_flop < often.model_flop
    assert seldom.model_flop_of_updates == pytest.approx(often.model_flop_of_updates)


def test_frozen_weights_have_no_gradient_to_compute(tmp_path: Path):
    """What is left of a convolution's backward pass is the gradient of its input."""
    teacher = "teachers/edm2-img512-xs-2147483-0.135"
    whole = plan(tmp_path, 2, ds=BF16, teacher=teacher)
    with freezing_generator("convolutions", "qkv", "skip"):
        part = plan(tmp_path, 2, ds=BF16, teacher=teacher)
    forward = flop(part, "generator", "generator forward")
    assert forward == flop(whole, "generator", "generator forward")
    saved = [flop(p, "generator", "backward") for p in (whole, part)]
    assert saved[0] - saved[1] == pytest.approx(forward, rel=0.05)
    for part_of in ("fake_score forward", "backward"):
        assert flop(part, "fake_score", part_of) == flop(whole, "fake_score", part_of)


def test_weights_stored_in_float32_move_more_bytes(tmp_path: Path):
    replicated, sharded = (plan(tmp_path, stage, ds=BF16).count for stage in (0, 1))
    assert replicated.total.flop == sharded.total.flop
    assert replicated.total.nbytes != sharded.total.nbytes


def test_a_loss_that_looks_at_values_is_one_error(tmp_path: Path, monkeypatch):
    loss = SiD._generator_loss

    def looking(*arguments, **more):
        found = loss(*arguments, **more)
        assert found.total.item() > 0
        return found

    monkeypatch.setattr(SiD, "_generator_loss", looking)
    with pytest.raises(CountError, match="method sida cannot be counted: its generator loss"):
        plan(tmp_path, 2, ds=BF16)
