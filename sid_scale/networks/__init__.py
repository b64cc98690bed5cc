"""What a network is: a denoiser in sigma space, and the architecture that it is built from.

A family of networks is one folder here (`edm2/`, `edm/`): an `Architecture`, which is a frozen
dataclass, and a `Denoiser` (denoiser.py), which it builds. `config.json` files find a family by its
name; `register_family` adds one from outside the package. `folder.py` reads and writes network
folders of any family. `features/` has pretrained networks that look at images,
`discriminator.py` the heads on their maps.

Importing this package is cheap: a family's modules, which need torch, are imported when it is
asked for. Imports: errors, files.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sid_scale.networks.denoiser import Denoiser


class EncoderLevel(NamedTuple):
    """One resolution of a U-Net's encoder."""

    block: int  # the number of its last block, as `Denoiser.forward` takes it
    channels: int  # of that block's output


class Architecture(ABC):
    """Base of the families' frozen dataclasses: all that a network is built from."""

    family: ClassVar[str]  # its name in config.json
    __dataclass_fields__: ClassVar[dict[str, Any]]

    label_dim: int  # number of classes; 0 for an unconditional network
    sigma_data: float  # standard deviation of the data that the network is trained on
    dropout: float
    augment_dim: int = 0  # augmentation labels that the network takes; 0: none

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""

    @abstractmethod
    def build(self, dtype: torch.dtype | None = None) -> Denoiser:
        """A network with random float32 weights that computes in `dtype` (None: float32)."""

    def headless(self) -> Architecture:
        """The same without an uncertainty head, which a generator has no use for."""
        return self

    def shifted(self, sigma_min: float) -> Architecture:
        """The same with EDM's preconditioning shifted by `sigma_min`, as consistency models have it
        (arXiv 2303.01469, App. C); families without that stay as they are."""
        return self

    def encoder_levels(self) -> tuple[EncoderLevel, ...]:
        """Where features of the encoder are taken, each half as large as the one before; () for a
        network without such an encoder."""
        return ()

    def check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raises ValueError for what cannot be built, or not in finite time and memory."""

    def to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict as files hold it: the publisher's names and shapes."""
        return state

    def from_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_file`."""
        return state


def unet_levels(
    model_channels: int, channel_mult: tuple[int, ...], num_blocks: int
) -> tuple[EncoderLevel, ...]:
    """The levels of an encoder that begins each with a block of its own: `num_blocks` follow."""
    return tuple(
        EncoderLevel(
            (level + 1) * (num_blocks + 1) - 1,
            model_channels * (multiple if num_blocks else channel_mult[0]),
        )
        for level, multiple in enumerate(channel_mult)
    )


def check_numbers(
    architecture: Architecture,
    integers: Mapping[str, tuple[int, int]],
    lists: Collection[str],
    limits: Mapping[str, float],
) -> None:
    """Compares an architecture's numbers with their limits.

    Args:
        integers: name -> the least and the most that it can be.
        lists: those of them that are up to 16 numbers.
        limits: name of a number from 0 on -> what it is below.

    Raises:
        ValueError: one is of another kind, or beyond its limits; says which.
    """
    for name, (least, most) in integers.items():
        value = getattr(architecture, name)
        values = value if name in lists else (value,)
        if not isinstance(values, tuple) or len(values) > 16:
            raise ValueError(f"{name} is {value!r:.64}, not up to 16 numbers")
        if not all(type(v) is int and least <= v <= most for v in values):
            raise ValueError(f"{name} is {value!r:.64}, not from {least} to {most}")
    for name, below in limits.items():
        number = getattr(architecture, name)
        if type(number) not in (int, float) or not 0 <= number < below:
            raise ValueError(f"{name} is {number!r:.64}, not from 0 to {below}")


# --- families by name ----------------------------------------------------------------------

# Name -> the architecture's class, or "module:attribute" of it.
FAMILIES: dict[str, type[Architecture] | str] = {
    "edm2": "sid_scale.networks.edm2.architecture:EDM2Architecture",
    "edm": "sid_scale.networks.edm.architecture:EDMArchitecture",
}


def register_family(architecture: type[Architecture]) -> None:
    """Adds a family of networks, under its `family`."""
    FAMILIES[architecture.family] = architecture


def describe_architecture(architecture: Architecture) -> dict[str, Any]:
    """An architecture as `config.json` has it."""
    return {"family": architecture.family, **dataclasses.asdict(architecture)}


def architecture_from(description: Mapping[str, Any]) -> Architecture:
    """The inverse of `describe_architecture`; JSON's lists become tuples.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it describes nothing that can be built.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    family = settings.pop("family")
    if family not in FAMILIES:
        raise ValueError(f"family {family!r:.64} is none of {', '.join(FAMILIES)}")
    cls = FAMILIES[family]
    if isinstance(cls, str):
        cls = resolve_name(cls)
    architecture: Architecture = cls(**settings)
    architecture.check()
    return architecture


def parameter_count(architecture: Architecture) -> int:
    """Number of parameters, counted without making them."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in architecture.build().parameters())
