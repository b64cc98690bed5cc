"""Which noise levels are picked: EDM's schedules as functions of a random draw."""

from torch import Tensor

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0


def karras_ramp(
    t: Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """Noise level at `t`: sigma_min at 0, sigma_max at 1 (arXiv 2206.00364, Eq. 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + t * (high - low)) ** rho


def generator_sigma(uniform: Tensor, tmax: float) -> Tensor:
    """Noise level at which the generator is judged; `tmax` (of 1000) leaves out the largest."""
    return karras_ramp(uniform * (tmax / 1000))


def lognormal_sigma(normal: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Log-normal noise level, for training a denoiser (arXiv 2206.00364, Table 1)."""
    return (normal * p_std + p_mean).exp()
