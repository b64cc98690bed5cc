"""One optimizer step of one network, whatever the method.

The method says what the loss is; this file knows ranks' shares, accumulation, frozen networks,
where dropout's randomness comes from, and what is logged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.data.stream import Batch
from sid_scale.diffusion.augment import mirror_half
from sid_scale.diffusion.few_step import generate
from sid_scale.diffusion.noise import keyed_seed
from sid_scale.distill.ahead import Prepared
from sid_scale.distill.build import Run
from sid_scale.distill.meter import Meter
from sid_scale.methods import MicroBatch, Networks, Update
from sid_scale.networks.as_written import twice_differentiable
from sid_scale.networks.denoiser import Denoise


def apply(run: Run, update: Update, stream: Iterator[Prepared], meter: Meter) -> bool:
    """Carries out one update: its micro-batches, then the optimizer's step. Collective.

    -> False if the update was skipped for a non-finite gradient.
    """
    trained, finite = run.networks[update.role], True
    micro_batches: Iterable[Prepared]
    micro_batches = run.own_time.waiting_for(islice(stream, run.accumulation))
    of_whole_batch: Callable[[Tensor], Tensor] = _gathered
    if update.per_sample is not None and run.accumulation > 1:
        micro_batches = list(micro_batches)
        of_whole_batch = _gathered_before(run, update, micro_batches)
    for prepared in micro_batches:
        batch = prepared.batch
        if isinstance(batch, Batch):
            run.progress.skipped_samples += batch.skipped
        torch.manual_seed(_dropout_seed(run, update.role, batch.index))
        with _others_frozen(run, update) as networks:
            loss = update.loss(networks, _micro_batch(run, prepared, of_whole_batch))
            trained.backward(loss.total)
        finite = trained.step()
        for tag, value in loss.terms.items():
            meter.add(tag, value)
        for tag, (sigma, values) in loss.by_sigma.items():
            meter.add_by_sigma(tag, sigma, values)
    run.progress.positions[update.role] += run.config.batch_size
    meter.add(f"grad_norm/{update.label}", trained.grad_norm)
    return finite


def _gathered(values: Tensor) -> Tensor:
    """Values of all ranks, (n,) on each -> (ranks * n,). Collective."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)


@torch.no_grad()
def _gathered_before(
    run: Run, update: Update, micro_batches: Sequence[Prepared]
) -> Callable[[Tensor], Tensor]:
    """A `MicroBatch.of_whole_batch` that goes through this rank's micro-batches now. Collective."""
    assert update.per_sample is not None
    values = []
    for prepared in micro_batches:
        torch.manual_seed(_dropout_seed(run, update.role, prepared.batch.index))
        with ExitStack() as stack:
            networks = {n: stack.enter_context(net.frozen()) for n, net in run.networks.items()}
            networks[update.role].train()  # the dropout of the loss
            batch = _micro_batch(run, prepared, _gathered)
            values.append(update.per_sample({**run.fixed, **networks}, batch))
    everyone = _gathered(torch.cat(values))
    return lambda _: everyone


@contextmanager
def _others_frozen(run: Run, update: Update) -> Iterator[Networks]:
    """The networks by role; gradients flow through all, but into the weights of one alone."""
    networks: dict[str, Callable[..., Any]] = {**run.fixed, update.role: run.networks[update.role]}
    with ExitStack() as stack:
        if update.differentiates:
            stack.enter_context(twice_differentiable(run.fixed.values()))
        for name, network in run.networks.items():
            if name != update.role:
                networks[name] = stack.enter_context(network.frozen())
        yield networks


def _micro_batch(
    run: Run, prepared: Prepared, of_whole_batch: Callable[[Tensor], Tensor]
) -> MicroBatch:
    batch, noise = prepared
    device, config = run.ranks.device, run.config
    condition = None
    if run.architecture.label_dim:  # to an unconditional teacher the data's say nothing
        assert batch.labels is not None  # `build_run` has compared teacher and data
        condition = batch.labels.to(device, non_blocking=True)
    last_step = _last_step(run)

    def images(generator: Denoise, z: Tensor, step_noise: Tensor) -> Tensor:
        return generate(generator, z, step_noise, condition, config.init_sigma, last_step)

    def real() -> Tensor:
        assert isinstance(batch, Batch)  # the role reads real images
        stored = batch.stored.to(device, non_blocking=True)
        sampled = run.codec.sample(stored, noise.of("posterior").normal)
        return (
            mirror_half(sampled, noise.of("x-flip").uniform()) if config.stream.xflip else sampled
        )

    return MicroBatch(
        condition,
        run.image_shape,
        config.steps,
        noise,
        real,
        images,
        run.codec.pixels,
        of_whole_batch,
    )


def _last_step(run: Run) -> int:
    """The step of a few-step generator that is trained, drawn anew for each iteration.

    All ranks and micro-batches take the same one: each forward is collective.
    """
    seed = keyed_seed(run.config.seed, "last step", run.progress.images_seen)
    return seed % run.config.steps


def _dropout_seed(run: Run, role: str, samples: Tensor) -> int:
    """Makes dropout a function of the micro-batch, on whichever rank it is."""
    return keyed_seed(run.config.seed, f"{role} dropout", int(samples[0]))
