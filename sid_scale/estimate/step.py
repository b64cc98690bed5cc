"""What one micro-batch of a run's method does on a GPU, counted on networks without numbers.

The method's own losses run, forward and backward, on the networks that the run would build, in the
dtypes that they would have, on the device "meta". Nothing is known here of what a loss calls or a
network consists of.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_scale.config.run import RunConfig
from sid_scale.diffusion.few_step import generate
from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.errors import SidScaleError
from sid_scale.estimate.count import Counter, Phase, Work
from sid_scale.methods import TEACHER, Method, MicroBatch, Update
from sid_scale.methods.freezing import frozen_weights
from sid_scale.networks import Architecture
from sid_scale.networks.as_written import twice_differentiable
from sid_scale.networks.checkpoint_activations import BlocksError, checkpoint_activations
from sid_scale.zero.frozen import freeze, set_trained, trained_parameters

META = "meta"
AFTER_WARM_UP = 720_720 << 20  # iterations: a multiple of every usual interval
LOSS, BACKWARD, RECOMPUTATION = "loss", "backward", "recomputation"
PER_SAMPLE = "weights of samples"  # where they are computed before the loss

Counts = dict[str, float]
PhaseWork = Mapping[tuple[Phase, str], Work]  # by phase and kind


class CountError(SidScaleError):
    """A method that cannot be counted; the message says which loss and why."""


class RunNetworks(NamedTuple):
    """What a run has in memory, by name."""

    trained: dict[str, nn.Module]
    fixed: dict[str, nn.Module]
    exact: frozenset[str] = frozenset()  # names of those that are trained as `Role.exact` says
    steps: Mapping[str, float] = {}  # of the optimizers in an iteration, by role; 1 if left out


@dataclass(frozen=True)
class StepCount:
    """Counts of one micro-batch of every update."""

    samples: int
    work: PhaseWork
    # Most bytes alive at once, without weights and without gradients of weights.
    peak: Mapping[Phase, int]
    # Bytes of trained weights that forwards and backwards read, block by block; without those of
    # networks that are whole on every rank.
    gathered: float
    updates: Mapping[str, float]  # in an iteration, by label

    @property
    def total(self) -> Work:
        return total(self.work)

    @property
    def model_flop(self) -> float:
        """FLOP without those of forwards that are computed again."""
        return sum(w.flop for (phase, _), w in self.work.items() if phase.part != RECOMPUTATION)

    @property
    def model_flop_of_updates(self) -> dict[str, float]:
        """Of them, those of one sample in one update, by label."""
        found = dict.fromkeys(self.updates, 0.0)
        for (phase, _), work in self.work.items():
            if phase.part != RECOMPUTATION:
                found[phase.update] += work.flop / self.samples / self.updates[phase.update]
        return found

    @property
    def largest_phase(self) -> Phase:
        """That in which most bytes are alive."""
        return max(self.peak, key=lambda phase: self.peak[phase])


def count_step(
    method: Method,
    networks: RunNetworks,
    architecture: Architecture,
    config: RunConfig,
    decode: Callable[[Tensor], Tensor],
    accumulation: int = 1,
) -> StepCount:
    """Counts one micro-batch of `config.micro_batch` samples, once all warm-ups are over.

    A generator of several steps is trained at one of them, drawn anew for each update: work is that
    of the average, bytes alive are those of the last.

    Args:
        networks: those of `build_networks`.
        architecture: the teacher's.
        decode: see decoder.py.
        accumulation: micro-batches of an update on one rank.
    """
    micro_batch = partial(_micro_batch, architecture, config, decode)
    count = partial(_count, method, networks, micro_batch, config, accumulation)
    last = count(config.steps - 1)
    if config.steps == 1:
        return last
    first = count(0)
    return StepCount(
        config.micro_batch,
        combined((0.5, first.work), (0.5, last.work)),
        last.peak,
        (first.gathered + last.gathered) / 2,
        last.updates,
    )


def fixed_and_per_sample(one: StepCount, other: StepCount) -> tuple[PhaseWork, PhaseWork]:
    """Work of a micro-batch that does not grow with its samples, and what each sample adds.

    Args:
        one, other: counts of different numbers of samples.
    """
    step = other.samples - one.samples
    per_sample = combined((1 / step, other.work), (-1 / step, one.work))
    return combined((1, one.work), (-one.samples, per_sample)), per_sample


def combined(*terms: tuple[float, PhaseWork]) -> PhaseWork:
    """The sum of counts, each times a factor."""
    found: dict[tuple[Phase, str], Work] = defaultdict(Work)
    for factor, work in terms:
        for key, value in work.items():
            found[key].add(value, factor)
    return dict(found)


def total(work: PhaseWork) -> Work:
    """The sum over all phases and kinds."""
    found = Work()
    for value in work.values():
        found.add(value)
    return found


# --- networks ------------------------------------------------------------------------------


def build_networks(
    method: Method,
    architecture: Architecture,
    guides: Mapping[str, Architecture],
    config: RunConfig,
    stage: int,
    dtype: torch.dtype,
) -> RunNetworks:
    """Every role's network and the fixed ones, as a run has them in memory, on "meta".

    Args:
        architecture: the teacher's.
        guides: those of the teacher's guides, by name.
        stage: ZeRO stage.
        dtype: what the networks' bodies compute in.
    """
    trained: dict[str, nn.Module] = {}
    with torch.device(META):
        for role in method.roles():
            of_role = replace(role.architecture(architecture), dropout=config.dropout)
            network = role.network(of_role, dtype)
            trained[role.name] = network.train()
            if stage and not role.exact:  # DeepSpeed stores what it shards in the compute dtype
                network.to(dtype)
            freeze(network, frozen_weights(role, network))
        fixed = dict(method.fixed_networks(torch.device(META)))
        if method.uses_teacher:
            guides = {**guides, TEACHER: architecture}
        for name, of_guide in guides.items():
            guide = of_guide.build(dtype)
            guide.load_weights(guide.state_dict(), META)
            fixed[name] = guide.requires_grad_(False).eval()
    networks = {**trained, **fixed}
    for name, how in config.activations_of(networks).items():
        # Block inputs cannot be copied to host memory here: they are counted as if they stayed.
        try:
            checkpoint_activations(networks[name], "checkpoint" if how == "offload" else how)
        except BlocksError as error:
            raise BlocksError(f"activations.{name}: {error}") from error
    steps: dict[str, float] = defaultdict(float)
    for update in method.updates(AFTER_WARM_UP * config.batch_size):
        steps[update.role] += 1 / update.every
    exact = frozenset(role.name for role in method.roles() if role.exact)
    return RunNetworks(trained, fixed, exact, steps)


# --- one micro-batch -----------------------------------------------------------------------


def _count(
    method: Method,
    networks: RunNetworks,
    micro_batch: Callable[[str, int], MicroBatch],
    config: RunConfig,
    accumulation: int,
    last_step: int,
) -> StepCount:
    modules = (*networks.trained.values(), *networks.fixed.values())
    given = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    counter = Counter(META, given=given)
    gathered: Counts = defaultdict(float)
    every: dict[str, int] = {}  # iterations from one update of a label to the next
    updates: dict[str, float] = defaultdict(float)
    for update in method.updates(AFTER_WARM_UP * config.batch_size):
        every[update.label] = update.every
        updates[update.label] += 1 / update.every
        batch = micro_batch(update.role, last_step)
        with _watched(networks, update, counter, gathered) as called, counter.active():
            try:
                if update.per_sample is not None and accumulation > 1:
                    with torch.no_grad(), counter.within(Phase(update.label, PER_SAMPLE)):
                        update.per_sample(called, batch)
                with counter.within(Phase(update.label, LOSS)):
                    loss = update.loss(called, batch).total
                with counter.within(Phase(update.label, BACKWARD)):
                    loss.backward()
            except (RuntimeError, NotImplementedError) as error:
                said = str(error).partition("\n")[0]
                raise CountError(
                    f"method {config.method} cannot be counted: its {update.label} loss fails on "
                    f"tensors without numbers, whose values no loss may look at: {said}"
                ) from error
            del loss
    peak = {phase: nbytes for phase, nbytes in counter.peak.items() if phase.update}
    work = combined(
        *((1 / every.get(key[0].update, 1), {key: value}) for key, value in counter.work.items())
    )
    return StepCount(config.micro_batch, work, peak, sum(gathered.values()), updates)


def _micro_batch(
    architecture: Architecture,
    config: RunConfig,
    decode: Callable[[Tensor], Tensor],
    role: str,
    last_step: int,
) -> MicroBatch:
    samples = torch.arange(config.micro_batch)
    condition = torch.empty_like(samples, device=META) if architecture.label_dim else None
    shape = architecture.sample_shape

    def images(generator: Callable[..., Any], z: Tensor, step_noise: Tensor) -> Tensor:
        return generate(generator, z, step_noise, condition, config.init_sigma, last_step)

    def real() -> Tensor:
        return torch.empty(config.micro_batch, *shape, device=META)

    def of_whole_batch(values: Tensor) -> Tensor:
        return values.repeat(config.batch_size // config.micro_batch)

    noise = KeyedNoise(config.seed, role, samples, META)
    return MicroBatch(condition, shape, config.steps, noise, real, images, decode, of_whole_batch)


@contextmanager
def _watched(
    networks: RunNetworks, update: Update, counter: Counter, gathered: Counts
) -> Iterator[dict[str, Callable[..., Any]]]:
    """The networks as an update calls them; each call is a phase of its own.

    One network alone gets gradients. They are handed on as soon as they are made, to an optimizer
    that shards or adds them up.
    """
    with ExitStack() as stack:
        if update.differentiates:
            stack.enter_context(twice_differentiable(networks.fixed.values()))
        called = {}
        for name, network in networks.trained.items():
            set_trained(network, name == update.role)
            network.train(name == update.role)
        for name, network in {**networks.trained, **networks.fixed}.items():
            is_sharded = name in networks.trained and name not in networks.exact
            of_network = gathered if is_sharded else defaultdict(float)
            watch = _Watch(name, update.label, 1 / update.every, counter, of_network)
            for module in network.modules():
                before = module.register_forward_pre_hook(watch.begin)
                after = module.register_forward_hook(watch.end, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            called[name] = watch.around(network)
        for _, p in trained_parameters(networks.trained[update.role]):
            stack.callback(p.register_post_accumulate_grad_hook(_hand_on).remove)
        yield called


class _Watch:
    """Tells which phase the modules of a network run in, and what ZeRO 3 would gather for them."""

    def __init__(self, name: str, update: str, share: float, counter: Counter, gathered: Counts):
        self._name, self._update, self._share = name, update, share
        self._counter, self._gathered = counter, gathered
        self._again = ExitStack()  # holds the phase of a forward in the backward pass
        self._depth = 0  # of modules inside it

    def around(self, network: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._counter.within(Phase(self._update, f"{self._name} forward")):
                return network(*args, **kwargs)

        return call

    def begin(self, module: nn.Module, args: Any) -> None:
        part = self._counter.phase.part
        if part == BACKWARD:
            phase = Phase(self._update, RECOMPUTATION)
            self._again.enter_context(self._counter.within(phase))
        if part in (BACKWARD, RECOMPUTATION):
            self._depth += 1
        own = sum(p.nbytes for p in module.parameters(recurse=False))
        comes_back = torch.is_grad_enabled() and part not in (BACKWARD, RECOMPUTATION)
        self._gathered[self._name] += self._share * own * (1 + comes_back)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._depth:
            self._depth -= 1
            if not self._depth:
                self._again.close()


def _hand_on(parameter: Tensor) -> None:
    parameter.grad = None
