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
    weights = reconstruction(v["in_ofs"], v["in_std"], float(v["out_ofs"]), float(v["out_std"]))
    np.testing.assert_allclose(weights, v["coefficients"].ravel(), rtol=1e-5, atol=1e-8)


def test_a_stored_average_is_its_own_best_fit():
    weights = reconstruction(np.array([1.0, 2.0, 3.0]), np.full(3, 0.1), 2.0, 0.1)
    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-9)


@pytest.mark.parametrize("width", [0.0, 0.29, -0.1])
def test_refuses_widths_without_an_exponent(width: float):
    with pytest.raises(ValueError, match="relative width"):
        exponent(width)
