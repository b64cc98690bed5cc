"""Where randomness comes from.

The noise of a sample is a function of (seed, purpose, name, sample): its position in the run's
global order decides, not the rank that happens to hold it nor what else was drawn before. A
resumed run, or one on another number of ranks, draws the same numbers. Dropout is a function of
the micro-batch, which holds the same samples on any number of ranks. A run that is resumed with
another micro-batch draws other dropout masks from there on.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class SeededNoise:
    """One random stream per sample; successive draws continue each stream.

    Args:
        seeds: of the streams, (N,). PyTorch's generator distinguishes seeds by their low 32 bits.
        device: where the numbers are wanted; they are drawn on the CPU and are the same on all.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu"):
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Unit normal numbers, (N, *shape) float32."""
        return self._stack([torch.randn(shape, generator=g) for g in self._streams])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (N, *shape) float32."""
        return self._stack([torch.rand(shape, generator=g) for g in self._streams])

    def _stack(self, draws: list[Tensor]) -> Tensor:
        return torch.stack(draws).to(self._device, non_blocking=True)


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

    def of(self, name: str) -> SeededNoise:
        """The draws called `name`, from their beginning."""
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
