"""EDM2's power-function averages (arXiv 2312.02696, Sec. 3 and Appendix C): pure mathematics.

The average at time t weighs the weights of time s by s^gamma: its width is a share of the
training so far, whatever its length. `relative_width` is that share's standard deviation
(sigma_rel; 0.05 to 0.15 are usual). Times may be in any unit; here it is images seen.
"""

from typing import NamedTuple

import numpy as np


def width_name(relative_width: float) -> str:
    """A width in the names of files: three decimals, or as many as it has."""
    short = f"{relative_width:.3f}"
    return short if float(short) == relative_width else f"{relative_width!r}"


def exponent(relative_width: float) -> float:
    """gamma for a relative width (Eq. 127: the largest root of a cubic).

    Raises:
        ValueError: the width is not in (0, 0.289), where gamma is positive.
    """
    if not 0 < relative_width < 12**-0.5:
        raise ValueError(f"a relative width is in (0, 0.289), not {relative_width}")
    inverse = relative_width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(relative_width: float, images_seen: float, batch_size: float) -> float:
    """Share of the old average that the update which reaches `images_seen` keeps (Eq. 126)."""
    return (1 - batch_size / images_seen) ** (exponent(relative_width) + 1)


class Reconstruction(NamedTuple):
    """How stored averages blend into another one."""

    coefficients: np.ndarray  # (n,), they add up to one
    error: float  # of the blend's weight profile, as a share of the profile that is wanted (L2)


def reconstruction(
    times: np.ndarray, widths: np.ndarray, new_time: float, new_width: float
) -> Reconstruction:
    """The blend of n stored averages that fits another one best.

    `times` and `widths` (n,) are those of the stored averages (Algorithm 3: least squares
    between weight profiles, then scaled to add up to one). Averages that are too alike for the
    system to be regular share a coefficient: the solution of the smallest norm.

    Raises:
        ValueError: a width has no exponent.
    """
    gammas = np.array([exponent(width) for width in np.asarray(widths, dtype=np.float64)])
    times, new_gamma = np.asarray(times, dtype=np.float64), exponent(new_width)
    stored = _profile_products(times[:, None], gammas[:, None], times[None, :], gammas[None, :])
    wanted = _profile_products(times, gammas, np.float64(new_time), new_gamma)
    size = np.sqrt(np.diag(stored))
    coefficients = np.linalg.lstsq(stored / np.outer(size, size), wanted / size)[0] / size
    coefficients /= coefficients.sum()
    itself = _profile_products(np.float64(new_time), new_gamma, np.float64(new_time), new_gamma)
    squared = itself - 2 * coefficients @ wanted + coefficients @ stored @ coefficients
    return Reconstruction(coefficients, float(np.sqrt(max(squared, 0.0) / itself)))


def _profile_products(t_a, gamma_a, t_b, gamma_b) -> np.ndarray:
    """Inner products of two weight profiles (Eq. 151); arguments broadcast."""
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    share = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return share * (t_a / t_b) ** power / np.maximum(t_a, t_b)
