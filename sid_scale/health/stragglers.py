"""The slowest rank of each logging interval, and ranks that stay slow."""

from collections.abc import Sequence
from statistics import median_low
from typing import NamedTuple

import torch
import torch.distributed as dist

from sid_scale.config.groups import HealthConfig
from sid_scale.devices import node_name
from sid_scale.health.own_time import OwnTime
from sid_scale.ranks import Ranks


class Interval(NamedTuple):
    """What ranks' own times were in one logging interval."""

    metrics: dict[str, float]
    slowest: str  # which rank was, for the log
    stragglers: str | None  # who has become one, for the log


class RankTimes:
    """Compares the ranks' own seconds (own_time.py) of an iteration."""

    def __init__(self, own: OwnTime, ranks: Ranks, settings: HealthConfig):
        """Collective."""
        self._own, self._device = own, ranks.device
        self._names = [""] * ranks.world_size
        dist.all_gather_object(self._names, f"rank {ranks.rank} on {node_name()}")
        self._stragglers = Stragglers(settings.straggler_factor, settings.straggler_intervals)
        self._seconds, self._iterations = 0.0, 0

    def begin(self) -> None:
        """An iteration begins; what was between two does not count."""
        self._own.forget()

    def end(self) -> None:
        """Its updates are done, on the device too."""
        self._seconds += self._own.take()
        self._iterations += 1

    def report(self) -> Interval:
        """Ends a logging interval. Collective: one all-gather of a number."""
        mine = torch.tensor(
            [self._seconds / max(self._iterations, 1)], dtype=torch.float64, device=self._device
        )
        self._seconds, self._iterations = 0.0, 0
        gathered = [torch.empty_like(mine) for _ in self._names]
        dist.all_gather(gathered, mine)
        seconds = torch.cat(gathered).tolist()
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        metrics = {
            "step_seconds/max": seconds[slowest],
            "step_seconds/median": median_low(seconds),
            "step_seconds/slowest_rank": float(slowest),
        }
        told = f"slowest {self._names[slowest]}: {seconds[slowest]:.3g} s, median "
        return Interval(
            metrics,
            told + f"{median_low(seconds):.3g}" if len(seconds) > 1 else "",
            self._stragglers.tell(seconds, self._names),
        )


class Stragglers:
    """Ranks that are slower than the median by a factor, several intervals in a row.

    Of an even number of ranks the median is the lower one: of two ranks each is compared with the
    faster.
    """

    def __init__(self, factor: float, intervals: int):
        self._factor, self._intervals = factor, intervals
        self._slow: dict[int, int] = {}  # rank -> intervals in a row

    def tell(self, seconds: Sequence[float], names: Sequence[str]) -> str | None:
        """A line about ranks that have become stragglers with this interval; None: there are none.

        Args:
            seconds: of each rank, in an iteration of the interval.
            names: of the ranks.
        """
        median = median_low(seconds)
        slow = [rank for rank, own in enumerate(seconds) if own > self._factor * median]
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank in slow}
        new = [rank for rank in slow if self._slow[rank] == self._intervals]
        if not new:
            return None
        told = ", ".join(f"{names[rank]} ({seconds[rank] / median:.3g} times)" for rank in new)
        return (
            f"straggler: all ranks wait for {told}: slower than {self._factor:g} times the median "
            f"of {median:.3g} s in {self._intervals} intervals in a row"
        )
