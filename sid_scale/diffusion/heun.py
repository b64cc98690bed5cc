"""EDM's samplers: how a teacher makes images, for comparison with its student.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(arXiv 2206.00364): Algorithm 1, deterministic, and Algorithm 2, which adds fresh noise between its
steps ("churn"), with the schedule of Eq. 5.

The state is float64, as in EDM's published figures, and the network sees it in float32. EDM2's
figures are of a float32 state. Its images differ by less than 1e-6, at 18 steps as at 256 with
churn; neighbouring values of a uint8 image are 8e-3 apart.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sid_scale.diffusion.sigma import RHO, SIGMA_MAX, SIGMA_MIN, karras_ramp
from sid_scale.networks.denoiser import Denoiser

Denoise = Callable[[Tensor, Tensor], Tensor]  # x (N, C, H, W), sigma [] -> denoised like x
MOST_GAMMA = math.sqrt(2) - 1  # a step never adds more noise than there is


@dataclass(frozen=True)
class SamplerSettings:
    """Of either sampler; without `s_churn` it is the deterministic one.

    Raises:
        ValueError: no images can be made so; says which setting is at fault.
    """

    steps: int
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    rho: float = RHO
    s_churn: float = 0.0  # by how much all steps raise the level, added up: a share of it
    s_min: float = 0.0  # noise is added at levels from here ...
    s_max: float = math.inf  # ... to here
    s_noise: float = 1.0  # standard deviation of what is added

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps {self.steps}: the sampler takes two or more")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"0 < sigma_min < sigma_max is needed, not {self.sigma_min}, {self.sigma_max}"
            )
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho {self.rho}: a finite number above 0")
        for name in ("s_churn", "s_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: a finite number, not below 0")
        if not 0 <= self.s_min <= self.s_max:
            raise ValueError(f"0 <= s_min <= s_max is needed, not {self.s_min}, {self.s_max}")
        if not self._levels_fall():
            raise ValueError(
                f"rho {self.rho}: the levels from {self.sigma_max} to {self.sigma_min} are no "
                f"{self.steps} numbers that fall"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations of an image: two a step, one in the last."""
        return 2 * self.steps - 1

    def describe(self) -> dict[str, Any]:
        """All of them, as JSON has them: no limit is null."""
        return {**asdict(self), "s_max": self.s_max if math.isfinite(self.s_max) else None}

    def levels(self) -> Tensor:
        """From `sigma_max` down to `sigma_min`, then 0 (Eq. 5): float64 (steps + 1,)."""
        down = 1 - torch.arange(self.steps, dtype=torch.float64) / (self.steps - 1)
        sigmas = karras_ramp(down, self.sigma_min, self.sigma_max, self.rho)
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def _levels_fall(self) -> bool:
        try:
            levels = self.levels()
        except OverflowError:
            return False
        return bool(levels.isfinite().all() and (levels.diff() < 0).all())

    def raised(self, sigma: Tensor) -> Tensor:
        """The levels to which fresh noise brings images at the levels `sigma`, like `sigma`."""
        gamma = min(self.s_churn / self.steps, MOST_GAMMA)
        within = (sigma >= self.s_min) & (sigma <= self.s_max)
        return torch.where(within, sigma * (1 + gamma), sigma)


def denoiser(network: Denoiser, condition: Tensor | None = None) -> Denoise:
    """`network` as a function of x and sigma alone; `condition` is class indices (N,), or None.

    The network is given x and sigma in float32, whatever they come in.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = network(x.float(), sigma.float(), condition).denoised
        assert denoised is not None  # only passes without `decode` leave it out
        return denoised.to(x.dtype)

    return denoise


def guided(main: Denoise, guide: Denoise, weight: float) -> Denoise:
    """Extrapolates from `guide` through `main`: guide + weight (main - guide).

    With an unconditional guide this is classifier-free guidance, with a lesser network
    autoguidance (arXiv 2406.02507, Eq. 3). Weight 1 is `main` alone, and the guide is then
    not evaluated.
    """
    if weight == 1:
        return main
    return lambda x, sigma: guide(x, sigma).lerp(main(x, sigma), weight)


def steps_for(evaluations: int) -> int:
    """Steps that take this many network evaluations: 17, 35, 63 -> 9, 18, 32.

    Raises:
        ValueError: no number of steps takes as many.
    """
    if evaluations < 3 or evaluations % 2 == 0:
        raise ValueError(
            f"Heun's method takes an odd number of evaluations, 3 or more, not {evaluations}"
        )
    return (evaluations + 1) // 2


def heun_sample(denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """Images of unit normal `noise` (N, C, H, W) by the deterministic sampler with EDM's schedule;
    see `edm_sample`."""
    return edm_sample(denoise, lambda: noise, SamplerSettings(steps))


@torch.no_grad()
def edm_sample(denoise: Denoise, draw: Callable[[], Tensor], settings: SamplerSettings) -> Tensor:
    """Integrates from noise to images with Heun's method: the probability-flow ODE, or with churn
    an SDE of the same marginals.

    Args:
        denoise: D(x, sigma), see `denoiser` and `guided`.
        draw: unit normal numbers (N, C, H, W), others at each call. It is called for the start,
            and once more in each step that adds noise.

    Returns:
        images or latents (N, C, H, W), float32.
    """
    levels = settings.levels()
    raised = settings.raised(levels[:-1])
    added = settings.s_noise * (raised**2 - levels[:-1] ** 2).sqrt()
    x = draw().double() * levels[0]
    levels, raised = levels.to(x.device), raised.to(x.device)
    for step, amount in enumerate(added.tolist()):
        if amount > 0:
            x = x + amount * draw().double()
        sigma, lower = raised[step], levels[step + 1]
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (lower - sigma) * slope
        if step < settings.steps - 1:  # the last ends at 0, where no slope is known
            slope_ahead = (ahead - denoise(ahead, lower)) / lower
            ahead = x + (lower - sigma) * (slope + slope_ahead) / 2
        x = ahead
    return x.float()
