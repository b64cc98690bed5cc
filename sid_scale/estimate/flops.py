"""The work of a run's updates, for the log of a run."""

from sid_scale.config.run import RunConfig
from sid_scale.estimate.report import make_plan


def flop_by_update(config: RunConfig, ranks: int) -> dict[str, float]:
    """FLOP that one image takes in one update, by the update's label, once all warm-ups are over.

    Without those of forwards that are computed again. Takes seconds: 3 for EDM2-XXL.

    Raises:
        SidScaleError: the run cannot be counted.
    """
    return make_plan(config, 1, ranks).count.model_flop_of_updates
