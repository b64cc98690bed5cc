"""What a run computes is counted without computing it."""

import pytest

from sid_scale.config.run import load_config
from sid_scale.estimate.flops import flop_per_image, forward_flop, gpu_hours
from sid_scale.methods import build_method
from sid_scale.networks.edm2.sizes import imagenet512

# Gflops of a forward pass in EDM2's paper (arXiv 2312.02696, Table 2), which counts a
# multiplication with its addition as one.
PUBLISHED = {"s": 102, "xxl": 552}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_forward_pass_is_what_the_paper_says(size: str):
    assert forward_flop(imagenet512(size)) / 2e9 == pytest.approx(PUBLISHED[size], rel=0.02)


def test_an_iteration_is_eleven_forward_passes_and_three_of_the_encoder():
    architecture = imagenet512("xs")
    whole = forward_flop(architecture)
    encoder = forward_flop(architecture, decode=False)

    def flop(preset: str, *overrides: str) -> float:
        method = build_method(load_config(preset, overrides), architecture)
        return flop_per_image(method, architecture)

    sida, sid = "edm2-img512-xs-sida", "edm2-img512-xs-sid"
    assert flop(sida) == pytest.approx(11 * whole + 3 * encoder, rel=1e-3)
    assert flop(sid) == pytest.approx(11 * whole, rel=1e-3)
    assert flop(sida, "steps=4") == pytest.approx(17 * whole + 3 * encoder, rel=1e-3)


def test_hours_are_those_of_the_assumed_rate():
    assert gpu_hours(0.35 * 989e12 * 7200) == pytest.approx(2)
