"""SiD's and SiDA's iteration as published, on one device: the benchmark's baseline.

SiD is arXiv 2404.04057, SiDA arXiv 2410.14919. Everything is replicated: float32 weights,
gradients and Adam's moments, plain `torch.optim.Adam`, noise drawn on the device, and a generator
whose weights are normalised in place after each update. One-step generators alone.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from plain_edm2 import PlainEDM2, force_unit_weights
from step_clock import OTHER, StepClock
from torch import Tensor


class Draws(NamedTuple):
    """What is random in a micro-batch of one update."""

    z: Tensor  # unit normal, (N, C, H, W)
    sigma: Tensor  # (N, 1, 1, 1): unit normal for the fake score, uniform for the generator
    noise: Tensor  # unit normal, (N, C, H, W)


class PlainStep:
    """Teacher, fake score, generator and its average, trained as published.

    Args:
        config: a run's settings, of which are read: method, objective, init_sigma, dropout,
            learning_rate, adam, forced_weight_norm, ema, batch_size, micro_batch.
        settings: of the teacher's architecture, by EDM2's names.
        state: the teacher's weights, by EDM2's names.
        dtype: what the networks' bodies compute in.
    """

    def __init__(
        self,
        config: Any,
        settings: Mapping[str, Any],
        state: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        clock: StepClock | None = None,
    ):
        self.config, self.objective, self.device = config, config.objective, device
        self.clock = clock or StepClock(device)
        self.sigma_data = settings["sigma_data"]
        self.shape = (
            settings["img_channels"],
            settings["img_resolution"],
            settings["img_resolution"],
        )
        self.classes = settings["label_dim"]
        self.adversarial = config.method != "sid"

        def network(**changes: Any) -> PlainEDM2:
            with torch.device("meta"):
                plain = PlainEDM2(dtype, **{**settings, **changes})
            weights = {name: state[name].to(device, copy=True) for name in plain.state_dict()}
            plain.load_state_dict(weights, assign=True)
            return plain

        self.teacher = network().eval().requires_grad_(False)
        self.fake_score = network(dropout=config.dropout)
        self.generator = network(dropout=config.dropout, logvar_channels=0)
        self._force_unit_weights()
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.adams = {
            "fake_score": self._adam(self.fake_score, self.objective.fake_score.learning_rate),
            "generator": self._adam(self.generator, config.learning_rate.generator),
        }

    def iterate(self, real: Iterator[tuple[Tensor, Tensor | None]]) -> dict[str, float]:
        """One update of each network from micro-batches of real images (N, C, H, W) and classes
        (N,); milliseconds by phase."""
        config, clock = self.config, self.clock
        rounds = config.batch_size // config.micro_batch
        clock.start()
        for _ in range(rounds):
            clock.begin("data")
            images, labels = next(real)
            clock.begin(OTHER)
            self.backward_fake_score(
                self._draws(len(images), uniform=False), images, labels, rounds
            )
        self.update_fake_score()
        for _ in range(rounds):
            clock.begin("data")
            images, labels = next(real)
            clock.begin(OTHER)
            self.backward_generator(self._draws(len(images), uniform=True), labels, rounds)
        self.update_generator()
        return clock.stop()

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Micro-batches for `iterate`, without end: random numbers in host memory, carried to the
        device one at a time."""
        count, classes = self.config.micro_batch, self.classes
        images = self.sigma_data * torch.randn(count, *self.shape)
        labels = torch.randint(classes, (count,)) if classes else None
        while True:
            yield images.to(self.device), None if labels is None else labels.to(self.device)

    def _draws(self, count: int, *, uniform: bool) -> Draws:
        z, noise = (torch.randn(count, *self.shape, device=self.device) for _ in range(2))
        draw = torch.rand if uniform else torch.randn
        return Draws(z, draw(count, 1, 1, 1, device=self.device), noise)

    def backward_fake_score(
        self, draws: Draws, real: Tensor, labels: Tensor | None, rounds: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Adds a micro-batch's gradient; the denoising and the discriminator's loss."""
        objective, clock = self.objective, self.clock
        settings = objective.fake_score
        self.generator.eval().requires_grad_(False)
        self.fake_score.train().requires_grad_(True)
        clock.begin("generate")
        with torch.no_grad():
            images = self._generate(draws.z, labels)
        clock.begin("fake_score forward")
        sigma = (draws.sigma * settings.p_std + settings.p_mean).exp()
        noise = sigma * draws.noise
        denoised, logvar, deepest = self.fake_score(images + noise, sigma, labels)
        logvar = self._weighted(logvar)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        loss = (weight * (denoised - images) ** 2 / logvar.exp() + logvar).sum() / len(images)
        discriminator = torch.zeros_like(loss)
        if self.adversarial:
            _, _, deepest_real = self.fake_score(real + noise, sigma, labels, decode=False)
            entropy = (
                F.softplus(_logits(deepest)).mean() + F.softplus(-_logits(deepest_real)).mean()
            )
            discriminator = (0.5 * weight * entropy / logvar.exp()).mean()
            discriminator = objective.loss_scale_discriminator * discriminator
        clock.begin("fake_score backward")
        ((loss + discriminator) / rounds).backward()
        return loss.detach(), discriminator.detach()

    def update_fake_score(self) -> None:
        """Adam's step of the fake score."""
        self.clock.begin("fake_score step")
        self._step("fake_score")

    def backward_generator(
        self, draws: Draws, labels: Tensor | None, rounds: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Adds a micro-batch's gradient; SiD's and the adversarial loss."""
        objective, clock = self.objective, self.clock
        self.generator.train().requires_grad_(True)
        self.fake_score.eval().requires_grad_(False)
        clock.begin("generator forward")
        images = self._generate(draws.z, labels)
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        sigma = (low + draws.sigma * objective.tmax / 1000 * (high - low)) ** 7
        noisy = images + sigma * draws.noise
        y_real, _, _ = self.teacher(noisy, sigma, labels)
        y_fake, logvar, deepest = self.fake_score(noisy, sigma, labels)
        logvar = self._weighted(logvar)
        w = (images - y_real).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
        gap = y_real - y_fake
        elements = gap * (y_real - images - objective.alpha * gap) / w / logvar.exp()
        loss = objective.loss_scale_generator * elements.sum() / len(images)
        gan = torch.zeros_like(loss)
        total = loss
        if self.adversarial:
            gan = (F.softplus(-_logits(deepest)).mean() / w / logvar.exp()).mean()
            gan = objective.loss_scale_generator_gan * images[0].numel() * gan
            total = objective.sid_share * loss + (1 - objective.sid_share) * gan
        clock.begin("generator backward")
        (total / rounds).backward()
        return loss.detach(), gan.detach()

    @torch.no_grad()
    def update_generator(self) -> None:
        """Adam's step of the generator, forced weight normalisation, and the average."""
        self.clock.begin("generator step")
        self._step("generator")
        self._force_unit_weights()
        self.clock.begin("average")
        decay = 0.5 ** (self.config.batch_size / self.config.ema.half_life)
        for average, weight in zip(self.average.parameters(), self.generator.parameters()):
            average.copy_(weight.lerp(average, decay))

    def _generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        sigma = torch.full((len(z), 1, 1, 1), self.config.init_sigma, device=self.device)
        images, _, _ = self.generator(self.config.init_sigma * z, sigma, labels)
        return images

    def _weighted(self, logvar: Tensor) -> Tensor:
        return logvar if self.objective.logvar_weighting else torch.zeros_like(logvar)

    def _force_unit_weights(self) -> None:
        if self.config.forced_weight_norm:
            force_unit_weights(self.generator)

    def _adam(self, network: PlainEDM2, learning_rate: float) -> torch.optim.Adam:
        adam = self.config.adam
        eps = 1e-8 if adam.eps is None else adam.eps
        return torch.optim.Adam(network.parameters(), learning_rate, adam.betas, eps)

    def _step(self, name: str) -> None:
        self.adams[name].step()
        self.adams[name].zero_grad(set_to_none=True)


def _logits(feature: Tensor) -> Tensor:
    """The channel mean of an encoder activation, within the published limits, float32."""
    return feature.float().mean(dim=1, keepdim=True).clamp(-10, 10)
