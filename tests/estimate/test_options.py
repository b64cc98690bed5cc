"""What the options of SiD's family cost, by count."""

import dataclasses
from pathlib import Path

import pytest

from sid_scale.errors import SidScaleError
from sid_scale.estimate.report import Plan
from sid_scale.estimate.traffic import communication
from sid_scale.methods.sid import MethodError
from sid_scale.networks.folder import NetworkFolder, save_network
from sid_scale.networks.guides import GuideError
from tests.estimate.plans import BF16, plan
from tests.estimate.test_step import flop
from tests.networks.edm.published import DDPMPP

S = "edm2-img512-s-2147483-0.130"
KL = {"objective__gradient": "kl"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def sida(folder: Path) -> Plan:
    return plan(folder, 2, ds=BF16, teacher=f"teachers/{S}")


def test_the_kl_gradient_saves_two_backward_passes(folder: Path, sida: Plan):
    kl = plan(folder, 2, ds=BF16, teacher=f"teachers/{S}", **KL)
    forward, encoder = _passes(sida)
    # The teacher's backward pass, and the decoder's of the fake score, whose encoder is run twice.
    saved = forward + (forward - encoder) - encoder
    assert _per_image(sida) - _per_image(kl) == pytest.approx(saved, rel=0.01)
    alone, kl_alone = (
        plan(folder, 2, ds=BF16, teacher=f"teachers/{S}", method="sid", data="null", **more)
        for more in ({}, KL)
    )
    assert _per_image(alone) - _per_image(kl_alone) == pytest.approx(2 * forward, rel=0.01)


def test_the_kl_gradient_keeps_fewer_activations(folder: Path, sida: Plan):
    kl = plan(folder, 2, ds=BF16, teacher=f"teachers/{S}", **KL)
    most = {p.update: max(b for q, b in kl.count.peak.items() if q.update == p.update)
            for p in kl.count.peak}  # fmt: skip
    before = max(b for q, b in sida.count.peak.items() if q.update == "generator")
    assert most["generator"] < 0.7 * before


def test_each_update_of_the_fake_score_is_counted(folder: Path):
    one, five = (plan(folder, 2, gpus=2, ds=BF16, objective__fake_score_updates=n) for n in (1, 5))
    more = _per_image(five) - _per_image(one)
    of_update = sum(w.flop for (at, _), w in one.count.work.items() if at.update == "fake_score")
    assert more == pytest.approx(4 * of_update / one.count.samples)
    sent = [communication(p.sharding, p.count, 1).per_iteration(1) for p in (one, five)]
    generator, fake_score = (one.sharding.parameters[role] for role in ("generator", "fake_score"))
    assert sent[1] / sent[0] == (generator + 5 * fake_score) / (generator + fake_score)


def test_weights_by_density_ratios_cost_a_pass_only_where_micro_batches_are_summed(folder: Path):
    weighed = {"objective__divergence": "forward_kl", "teacher": f"teachers/{S}", "ds": BF16}
    once = plan(folder, 2, batch_size=8, micro_batch=8, **weighed)
    summed = plan(folder, 2, batch_size=8, micro_batch=2, **weighed)
    forward, encoder = _passes(once)
    assert _per_image(summed) - _per_image(once) == pytest.approx(forward + encoder, rel=0.01)


def test_a_guide_is_in_memory_and_has_passes_of_its_own(folder: Path, sida: Plan):
    guide = {"objective__guide": "teachers/edm2-img512-xs-uncond-2147483-0.110"}
    guided = plan(folder, 2, ds=BF16, teacher=f"teachers/{S}", objective__guidance=2, **guide)
    assert guided.memory.fixed > sida.memory.fixed + 0.2e9  # 0.12 of 10^9 weights in bfloat16
    assert flop(guided, "generator", "guide forward") > 0
    assert flop(guided, "fake_score", "guide forward") == 0
    both = plan(
        folder, 2, ds=BF16, teacher=f"teachers/{S}", objective__guidance=2,
        objective__guidance_fake_score=2, **guide,
    )  # fmt: skip
    assert flop(both, "generator", "guide forward") == 2 * flop(
        guided, "generator", "guide forward"
    )
    assert flop(both, "fake_score", "guide forward") > 0


def test_a_guide_that_nobody_knows_is_told(folder: Path):
    with pytest.raises(SidScaleError, match=r"^objective\.guide: there is no guides/of/mine"):
        plan(folder, 2, objective__guide="guides/of/mine", objective__guidance=2)


def test_a_guide_that_cannot_guide_is_told(folder: Path):
    changes = {"pixels": {}, "untold": {"augment_dim": 0}, "larger": {"img_resolution": 16}}
    for name, change in changes.items():
        architecture = dataclasses.replace(DDPMPP, **change)
        save_network(folder / name, NetworkFolder(architecture, architecture.build().state_dict()))
    given = {"teacher": folder / "pixels", "objective__logvar_weighting": "false"}
    guided = {**given, "objective__guidance": 2, "objective__guide": folder / "untold"}
    with pytest.raises(GuideError, match=r"makes images \(3, 16, 16\), the teacher \(3, 8, 8\)"):
        plan(folder, 2, **{**guided, "objective__guide": folder / "larger"})
    augmented = {**guided, "objective__augmentation": 0.12}
    plan(folder, 2, **augmented)  # the guide sees no augmented images
    with pytest.raises(MethodError, match="untold takes 0 augmentation labels, not 9: set"):
        plan(folder, 2, **augmented, objective__guidance_fake_score=2)


def _per_image(counted: Plan) -> float:
    """FLOP of an iteration."""
    return counted.count.total.flop / counted.count.samples


def _passes(counted: Plan) -> tuple[float, float]:
    """FLOP of a forward pass, and of the encoder's alone."""
    forward = flop(counted, "generator", "teacher forward")
    return forward, flop(counted, "fake_score", "fake_score forward") - forward
