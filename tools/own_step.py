"""This project's iteration, through the code that a run uses."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from step_clock import OTHER, StepClock

from sid_scale.config.run import RunConfig
from sid_scale.distill.build import Run, build_run
from sid_scale.distill.loop import update_averages
from sid_scale.distill.meter import Meter
from sid_scale.distill.step import apply
from sid_scale.methods import GENERATOR, Loss, MicroBatch, Networks, Update
from sid_scale.ranks import Ranks


class OwnStep:
    """A run as `sid-scale train` builds it, one iteration at a time.

    Use it as a context manager: it reads shards on a thread.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, clock: StepClock | None = None):
        self.run: Run = build_run(config, ranks)
        self.clock = clock or StepClock(ranks.device)
        self._meter = Meter(ranks.device)
        self._open = self.run.open_streams()
        for role, network in self.run.networks.items():
            _time(network, "backward", self.clock, f"{role} backward")
            _time(network, "step", self.clock, f"{role} step")

    def __enter__(self) -> "OwnStep":
        self._streams = {
            role: _timed_stream(stream, self.clock)
            for role, stream in self._open.__enter__().items()
        }
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def iterate(self) -> dict[str, float]:
        """Every update of an iteration, as in `distill/loop.py`; milliseconds by phase."""
        run, clock = self.run, self.clock
        clock.start()
        run.set_learning_rates()
        for update in run.method.updates(run.progress.images_seen):
            timed = replace(update, loss=self._timed_loss(update))
            apply(run, timed, self._streams[update.role], self._meter)
            if update.role == GENERATOR:
                clock.begin("average")
                update_averages(run)
                clock.begin(OTHER)
        run.progress.images_seen += run.config.batch_size
        return clock.stop()

    def _timed_loss(self, update: Update) -> Callable[[Networks, MicroBatch], Loss]:
        clock, phase = self.clock, f"{update.role} forward"

        def loss(networks: Networks, batch: MicroBatch) -> Loss:
            def generate(*given: Any) -> torch.Tensor:
                with_gradient = torch.is_grad_enabled()
                clock.begin(phase if with_gradient else "generate")
                images = batch.generate(*given)
                clock.begin(phase)
                return images

            clock.begin(phase)
            return update.loss(networks, batch._replace(generate=generate))

        return loss


def _time(network: Any, name: str, clock: StepClock, phase: str) -> None:
    """Makes calls of a network's method a phase."""
    method = getattr(network, name)

    def timed(*given: Any) -> Any:
        clock.begin(phase)
        outcome = method(*given)
        clock.begin(OTHER)
        return outcome

    setattr(network, name, timed)


def _timed_stream(stream: Iterator[Any], clock: StepClock) -> Iterator[Any]:
    while True:
        clock.begin("data")
        batch = next(stream)
        clock.begin(OTHER)
        yield batch
