"""Where randomness comes from.

The noise of a sample is a function of (seed, purpose, name, sample): its position in the run's
global order decides, not the rank that happens to hold it nor what else was drawn before. A
resumed run, or one on another number of ranks, draws the same numbers. Dropout is a function of
the micro-batch, which holds the same samples on any number of ranks. A run that is resumed with
another micro-batch draws other dropout masks from there on.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class Draw(NamedTuple):
    """What is asked for of each sample's stream."""

    kind: Callable[..., Tensor]  # torch.randn or torch.rand
    shape: tuple[int, ...]  # of one sample


class SeededNoise:
    """One random stream per sample; successive draws continue each stream.

    Args:
        seeds: of the streams, (N,). PyTorch's generator distinguishes seeds by their low 32 bits.
        device: where the numbers are wanted; they are drawn on the CPU and are the same on all.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu"):
        self._seeds, self._device = list(seeds), torch.device(device)
        self._streams = self._begin()
        self._ahead: tuple[Draw, Tensor] | None = None
        self.first: Draw | None = None  # what was asked for first

    def normal(self, *shape: int) -> Tensor:
        """Unit normal numbers, (N, *shape) float32."""
        return self._next(Draw(torch.randn, shape))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (N, *shape) float32."""
        return self._next(Draw(torch.rand, shape))

    def draw_ahead(self, first: Draw) -> None:
        """Draws what will probably be asked for first: no number is another for it."""
        self._ahead = first, self._drawn(first)

    def _begin(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in self._seeds]

    def _next(self, draw: Draw) -> Tensor:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] != draw:
            ahead, self._streams = None, self._begin()  # something else is asked for
        self.first = self.first or draw
        numbers = self._drawn(draw) if ahead is None else ahead[1]
        return numbers.to(self._device, non_blocking=True)

    def _drawn(self, draw: Draw) -> Tensor:
        """Numbers in the host's memory: pinned, if they are wanted on a GPU."""
        numbers = torch.empty(
            len(self._streams), *draw.shape, pin_memory=self._device.type == "cuda"
        )
        if numbers.numel() == 0:
            return numbers  # of a generator of one step there is no noise between steps
        return torch.stack([draw.kind(draw.shape, generator=g) for g in self._streams], out=numbers)


class KeyedNoise:
    """Noise of a run's samples, by name.

    Each name is a set of streams of its own, so the order in which a loss asks for its draws
    changes none of them. Two of some billions of samples may well share a stream, which harms no
    training. Images that are to differ are made from seeds that do (generator.py).

    Args:
        seed: the run's seed.
        purpose: what the numbers are for ("generator", "samples", ...).
        samples: positions in the run's global order, (N,) integers.
        device: see `SeededNoise`.
    """

    def __init__(
        self, seed: int, purpose: str, samples: Tensor, device: torch.device | str = "cpu"
    ):
        self._key, self._samples, self._device = (seed, purpose), samples, device
        self._ahead: dict[str, SeededNoise] = {}
        self._given: dict[str, SeededNoise] = {}

    def of(self, name: str) -> SeededNoise:
        """The draws called `name`, from their beginning."""
        self._given[name] = self._ahead.pop(name) if name in self._ahead else self._make(name)
        return self._given[name]

    @property
    def first_draws(self) -> dict[str, Draw]:
        """What was asked for first of each name: what other samples will probably be asked for."""
        return {name: noise.first for name, noise in self._given.items() if noise.first}

    def draw_ahead(self, first_draws: Mapping[str, Draw]) -> None:
        """Draws what will probably be asked for: no number is another for it."""
        for name, draw in first_draws.items():
            self._ahead[name] = self._make(name)
            self._ahead[name].draw_ahead(draw)

    def _make(self, name: str) -> SeededNoise:
        seed, purpose = self._key
        return SeededNoise(keyed_seeds(seed, f"{purpose} {name}", self._samples), self._device)


def keyed_seeds(seed: int, purpose: str, samples: Tensor) -> list[int]:
    """A seed for each of `samples`, (N,) integers; see `keyed_seed`."""
    key = _key(seed, purpose)
    return [_numbered(key, number) for number in samples.tolist()]


def keyed_seed(seed: int, purpose: str, number: int) -> int:
    """A 64-bit number that is a function of all three and unrelated to its neighbours."""
    return _numbered(_key(seed, purpose), number)


def _key(seed: int, purpose: str) -> int:
    key = _mix(seed & _MASK)
    for byte in purpose.encode():
        key = _mix(key ^ byte)
    return key


def _numbered(key: int, number: int) -> int:
    return _mix(key ^ _mix(number & _MASK))


def _mix(x: int) -> int:
    """The splitmix64 finaliser: neighbouring integers become unrelated 64-bit seeds."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
