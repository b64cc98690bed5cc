"""Random numbers of PyTorch's default generator, as a function of a seed, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's default generator begins at `seed`; afterwards it is where it was.

    What is drawn inside is the same on all ranks. Devices' generators are left alone, which
    `torch.manual_seed` would not do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
