"""What every source of samples offers: a list of them, none opened, and parts to be read."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np

from sid_scale.data.prepare.files import SourceError


class GoneSample(SourceError):
    """A sample that was refused before, and that the source does not hold any more."""


class Entry(NamedTuple):
    """A sample as its source lists it."""

    name: str  # of its file
    label: int
    check: str  # what is known of its contents without reading them


class Raw(NamedTuple):
    """A sample of a source, not yet read.

    `load` returns latents, float (2C, H, W), or an image, uint8 (H, W, 3), and raises
    `SidScaleError` if it is damaged; `where` is its name in messages.
    """

    key: str
    entry: Entry
    where: str
    load: Callable[[], np.ndarray]


class SourcePart(Protocol):
    """Some of a source's samples: small, and fit to be sent to another process."""

    def open(self) -> AbstractContextManager[Iterator[Raw]]:
        """Inside, the samples in order, each of which can be loaded."""


class Source(Protocol):
    """Samples, numbered from 0."""

    kind: str  # "latents" or "images"
    num_classes: int
    fingerprint: str  # of names, classes and, where that costs no reading, contents
    classes: list[str]  # names of the folders that classes come from, if they do
    shuffled: bool  # its own order is a fair one, and the only one that it reads fast
    notes: list[str]  # what its user should know

    def __len__(self) -> int: ...

    def part(self, numbers: np.ndarray) -> SourcePart:
        """The samples with these numbers, in this order."""
