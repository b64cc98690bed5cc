"""EDM2's power-function averages."""

from pathlib import Path

import numpy as np
import pytest

from sid_scale.zero.power_ema import decay, exponent, reconstruction


@pytest.mark.reference
def test_published_numbers(reference_dir: Path):
    v = np.load(reference_dir / "power_function_ema.npz")
    np.testing.assert_allclose([exponent(s) for s in v["std"]], v["exponent"], rtol=1e-8)
    betas = [decay(s, 1e6, 2048) for s in v["std"]]
    np.testing.assert_allclose(betas, v["beta_t2048_of_1e6"], rtol=1e-8)
    blend = reconstruction(v["in_ofs"], v["in_std"], float(v["out_ofs"]), float(v["out_std"]))
    np.testing.assert_allclose(blend.coefficients, v["coefficients"].ravel(), rtol=1e-5, atol=1e-8)


def test_a_stored_average_is_its_own_best_fit():
    blend = reconstruction(np.array([1.0, 2.0, 3.0]), np.full(3, 0.1), 2.0, 0.1)
    np.testing.assert_allclose(blend.coefficients, [0, 1, 0], atol=1e-9)
    assert blend.error == pytest.approx(0, abs=1e-7)


def test_the_error_is_that_of_the_blended_profile():
    """By sums over a fine grid of times."""
    times, widths = np.array([2.0, 3.0, 4.0, 4.0]), np.array([0.05, 0.05, 0.05, 0.1])
    blend = reconstruction(times, widths, 4.0, 0.07)
    grid = np.linspace(1e-6, 4, 200_001)

    def profile(time: float, width: float) -> np.ndarray:
        gamma = exponent(width)
        return (gamma + 1) * (grid <= time) * grid**gamma / time ** (gamma + 1)

    stored = [profile(t, w) for t, w in zip(times, widths, strict=True)]
    missed = profile(4.0, 0.07) - blend.coefficients @ np.array(stored)
    expected = np.linalg.norm(missed) / np.linalg.norm(profile(4.0, 0.07))
    assert blend.error == pytest.approx(expected, rel=1e-3)
    assert 0.001 < blend.error < 0.1


def test_two_widths_at_32_moments_meet_every_width_between():
    """What the default interval of snapshots rests on."""
    times, widths = np.repeat(np.arange(1, 33), 2), np.tile([0.05, 0.1], 32)
    errors = [reconstruction(times, widths, 32, width).error for width in (0.06, 0.07, 0.08)]
    assert max(errors) < 2e-3


@pytest.mark.parametrize("apart", [0, 1, 1000])
def test_averages_that_are_alike_make_no_noise(apart: int):
    """A run's last snapshot may be taken an iteration after another."""
    times, widths = np.repeat([1e9, 1e9 + apart], 2), np.tile([0.05, 0.1], 2)
    blend = reconstruction(times, widths, 1e9 + apart, 0.07)
    once = reconstruction(times[:2], widths[:2], 1e9, 0.07)
    assert abs(blend.coefficients).sum() < 1.01
    assert blend.error == pytest.approx(once.error, rel=1e-2)


@pytest.mark.parametrize("width", [0.0, 0.29, -0.1])
def test_refuses_widths_without_an_exponent(width: float):
    with pytest.raises(ValueError, match="relative width"):
        exponent(width)
