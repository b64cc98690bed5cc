"""What the loop knows of evaluation: that there may be one, and when it is due.

Evaluation itself is built on top of distillation (evaluate/training.py); train.py puts the two
together.
"""

from collections.abc import Callable
from typing import Protocol

from sid_scale.config.parse import ConfigError
from sid_scale.distill.build import Run
from sid_scale.distill.telemetry import Telemetry


class Evaluation(Protocol):
    """What measures the averaged generator of one run. All methods are collective."""

    def measure_if_due(
        self, telemetry: Telemetry, *, finished: bool, stopped: Callable[[], bool]
    ) -> bool:
        """Measures now if it is time, and keeps the generator if it is the best so far.

        Args:
            finished: whether the run's last image has been seen.
            stopped: called now and then; the evaluation is given up once it is true.

        Returns:
            Whether metrics were noted, for the record that is to be written next.
        """

    def link_best(self) -> None:
        """Links `checkpoints/best` to the best evaluated checkpoint, once there is a new one."""


OpenEvaluation = Callable[[Run], Evaluation]  # may raise SidScaleError: it could not work


class NoEvaluation:
    """A run without evaluation."""

    def measure_if_due(
        self, telemetry: Telemetry, *, finished: bool, stopped: Callable[[], bool]
    ) -> bool:
        return False

    def link_best(self) -> None:
        pass


def no_evaluation(run: Run) -> Evaluation:
    """For runs that ask for none.

    Raises:
        ConfigError: this one does.
    """
    if run.config.evaluation.every_images:
        raise ConfigError(
            "evaluation.every_images: the run asks for an evaluation, but was started without one; "
            "start it with `deepspeed --module sid_scale.train`, or call `train` with "
            "`open_evaluation` of sid_scale.evaluate.training"
        )
    return NoEvaluation()
