"""What a method of distillation is: networks to train, and the losses that train them.

A method is one file here: `Roles` name the networks, `Updates` say in which order they learn from
which loss. It knows no ranks, engines, accumulation or checkpoints: `distill/step.py` carries out
any update of any role. SiD's losses are in `sid_losses.py`, their mathematics in `losses.py`, the
settings of each method in `settings.py`; `freezing.py` finds the weights that a role leaves as they
are, `guidance.py` has a denoiser that is guided by another.
`METHODS` finds a method by its name; `register` adds one from outside the package.

Importing this package is cheap: a method's module, which needs torch, is imported when it is built.
Imports: config, networks, diffusion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from sid_scale.methods.settings import register_objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sid_scale.config.run import RunConfig
    from sid_scale.diffusion.noise import KeyedNoise
    from sid_scale.networks import Architecture

GENERATOR = "generator"  # the role that every method has: what the run averages and publishes
TEACHER = "teacher"  # the frozen network; see `Method.uses_teacher`

# Name -> network: every role's, the teacher, guides and what else is fixed. Only the one in
# training gets gradients.
Networks = Mapping[str, Callable[..., Any]]


class Loss(NamedTuple):
    """A loss to backpropagate, and what the logs show of it (detached)."""

    total: Tensor  # scalar, a mean over the micro-batch
    terms: Mapping[str, Tensor]  # tag such as "loss/discriminator" -> scalar
    by_sigma: Mapping[str, tuple[Tensor, Tensor]] = {}  # tag -> sigma and values, (N,) each


class MicroBatch(NamedTuple):
    """What one loss is computed from: the same on any number of ranks."""

    condition: Tensor | None  # (N,) class indices; None for unconditional networks
    shape: tuple[int, int, int]  # (C, H, W) of what the networks see
    steps: int  # of the generator
    noise: KeyedNoise  # all that is random, by name
    real: Callable[[], Tensor]  # -> (N, C, H, W) real images; for roles with `reads_real`
    # (generator, z (N, C, H, W), step noise (K-1, N, C, H, W)) -> images (N, C, H, W)
    generate: Callable[[Callable[..., Any], Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]  # -> (N, 3, H', W') pixels in [-1, 1], with gradient
    # What the update's `per_sample` makes of this micro-batch, (N,), -> that of the whole batch,
    # of all ranks (B,). Collective.
    of_whole_batch: Callable[[Tensor], Tensor]

    def generated(self, generator: Callable[..., Any]) -> Tensor:
        """Images of a generator, (N, C, H, W), from the noise named "z" and "step_noise"."""
        from sid_scale.diffusion.few_step import generator_inputs  # imports torch

        noise = self.noise
        start = generator_inputs(noise.of("z"), noise.of("step_noise"), self.shape, self.steps)
        return self.generate(generator, *start)


def as_teacher(teacher: Architecture) -> Architecture:
    """The architecture of a role that is the teacher's."""
    return teacher


def headless(teacher: Architecture) -> Architecture:
    """The architecture of a role that is the teacher's without its uncertainty head."""
    return teacher.headless()


@dataclass(frozen=True)
class Role:
    """A network that the method trains."""

    name: str
    learning_rate: float
    architecture: Callable[[Architecture], Architecture] = as_teacher  # of the teacher's
    forced_norm: bool = False  # whether its normalised parameters stay normalised
    reads_real: bool = False  # whether its updates read real images; else conditions alone
    betas: tuple[float, float] | None = None  # of its Adam; None: the run's
    clip_value: float | None = None  # the largest magnitude of an element of its gradient
    build: Callable[[Architecture], nn.Module] | None = None  # None: a copy of the teacher
    # Named groups of weights, or patterns of their names, that stay as the network that it starts
    # from has them; of a copy of the teacher.
    freeze: tuple[str, ...] = ()
    # Whether it computes in float32 and its weights are whole on every rank, whatever the DeepSpeed
    # JSON says; its optimizer is sharded. For small networks whose gradient is differentiated.
    exact: bool = False

    def network(self, architecture: Architecture, dtype: torch.dtype | None = None) -> nn.Module:
        """A network of the role with random weights.

        Args:
            architecture: the role's own.
            dtype: that a copy of the teacher computes in; None: float32.
        """
        return self.build(architecture) if self.build else architecture.build(dtype)


def generator_role(
    config: RunConfig,
    architecture: Callable[[Architecture], Architecture],
    freeze: tuple[str, ...] = (),
) -> Role:
    """The generator's role, trained as a run's config says."""
    return Role(
        GENERATOR,
        config.learning_rate.generator,
        architecture,
        forced_norm=config.forced_weight_norm,
        betas=config.adam.generator_betas,
        freeze=freeze,
    )


@dataclass(frozen=True)
class Update:
    """One optimizer step of one role."""

    role: str
    loss: Callable[[Networks, MicroBatch], Loss]
    name: str = ""  # where a role has several
    every: int = 1  # iterations from one to the next
    # Whether the loss holds a gradient, so that fixed networks have to be differentiated twice.
    differentiates: bool = False
    # Values (N,) without gradient that the loss needs of the whole batch; see `MicroBatch`. Where a
    # rank has several micro-batches, it goes through all of them before the first loss.
    per_sample: Callable[[Networks, MicroBatch], Tensor] | None = None

    @property
    def label(self) -> str:
        """What logs and estimates call it."""
        return self.name or self.role


class Method(ABC):
    """See the module's docstring."""

    uses_teacher: bool = True  # whether the losses call the teacher; else it is not kept in memory
    decodes: bool = False  # whether the losses look at decoded images

    @abstractmethod
    def roles(self) -> Sequence[Role]:
        """The networks that are trained, the generator first."""

    @abstractmethod
    def updates(self, images_seen: int) -> Iterator[Update]:
        """The optimizer steps of the iteration that begins after so many images."""

    def files(self) -> Mapping[str, Path]:
        """Files that the losses depend on, by name; a run's generators have their hashes."""
        return {}

    def guides(self) -> Mapping[str, Path]:
        """Folders of frozen networks that the losses call as they call the teacher, by name: they
        denoise the same images."""
        return {}

    def check_guides(self, guides: Mapping[str, Architecture]) -> None:
        """Raises SidScaleError for guides of such architectures that the losses cannot call."""
        return

    def fixed_networks(self, device: torch.device) -> Mapping[str, nn.Module]:
        """Frozen networks of other kinds that the losses call, by name.

        On the meta device no file is read.
        """
        return {}


# --- methods by name -----------------------------------------------------------------------

Factory = Callable[["RunConfig", "Architecture"], Method]  # the run's config, the teacher's

# Name -> a method's factory, or "module:attribute" of one.
METHODS: dict[str, Factory | str] = {
    "sid": "sid_scale.methods.sid:SiD",
    "sida": "sid_scale.methods.sid:SiDA",
    "sid2a": "sid_scale.methods.sid:SiDA",
    "gdd": "sid_scale.methods.gdd:GDD",
    "gdd_i": "sid_scale.methods.gdd:GDDI",
}


def register(name: str, objective: type, factory: Factory) -> None:
    """Adds a method under a name, for `method:` in a run's YAML.

    Args:
        name: of the method.
        objective: dataclass of the `objective:` group of settings.
        factory: makes the method of a run's config and its teacher's architecture.
    """
    register_objective(name, objective)
    METHODS[name] = factory


def build_method(config: RunConfig, teacher: Architecture) -> Method:
    """The method that a run asks for.

    Raises:
        SidScaleError: the method cannot work with this teacher.
    """
    factory = METHODS[config.method]
    if isinstance(factory, str):
        factory = resolve_name(factory)
    method: Method = factory(config, teacher)
    return method
