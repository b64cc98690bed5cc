"""Weights of a run's networks that stay as the folder that they start from has them.

A checkpoint holds none of them: it names the folder, and the SHA-256 of its weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_scale.config.run import RunConfig
from sid_scale.hashing import sha256_file
from sid_scale.methods import GENERATOR, Role
from sid_scale.methods.freezing import frozen_weights
from sid_scale.networks import Architecture
from sid_scale.networks.folder import WEIGHTS, NetworkFolder
from sid_scale.ranks import on_first_rank
from sid_scale.zero.settings import DeepSpeedSettings


@dataclass(frozen=True)
class Frozen:
    """Frozen weights of one network."""

    start: Path  # the folder that has them
    sha256: str  # of its weights' file
    weights: Mapping[str, Tensor]  # by name, as the folder has them; mapped, not read

    def describe(self) -> dict[str, Any]:
        """The entry of a checkpoint's state.json, which start_weights.py reads."""
        return {"start": str(self.start), "sha256": self.sha256, "weights": list(self.weights)}

    def trained_share(
        self, role: str, trained: int, settings: DeepSpeedSettings, ranks: int, averages: int
    ) -> str:
        """A line for the log: how much of the network is trained, and what memory that saves.

        Args:
            trained: number of its parameters that are.
            ranks: that share out the state of training.
            averages: that are kept of the network.
        """
        frozen = sum(weight.numel() for weight in self.weights.values())
        saved = settings.training_bytes(ranks, averages=averages)
        parts = [
            f"{frozen * saved[place] / 1e9:.3g} GB {where}"
            for place, where in (("GPU", "on each GPU"), ("host", "of host memory for each"))
            if saved[place]
        ]
        total = trained + frozen
        return (
            f"{role}: {trained:,} of {total:,} parameters are trained ({trained / total:.1%}); the "
            f"others stay as {self.start} has them, which saves {' and '.join(parts)}"
        )


def frozen_names(roles: Iterable[Role], teacher: Architecture) -> dict[str, list[str]]:
    """Names of the parameters that stay as they are, by the name of a role that has some.

    Raises:
        ConfigError: a role's `freeze` is at fault.
    """
    found = {}
    for role in roles:
        if role.freeze:
            with torch.device("meta"):
                network = role.network(role.architecture(teacher))
            found[role.name] = frozen_weights(role, network)
    return found


def frozen_of(
    config: RunConfig,
    names: Mapping[str, list[str]],
    teacher: NetworkFolder,
    start: NetworkFolder,
    teacher_sha256: str,
) -> dict[str, Frozen]:
    """The frozen weights themselves, by role. Collective.

    Args:
        names: see `frozen_names`.
        start: the network that the generator starts from; all others start from the teacher.
    """
    found = {}
    for role, of_role in names.items():
        folder, place, digest = teacher, Path(config.teacher), teacher_sha256
        if role == GENERATOR and config.generator_init is not None:
            folder, place = start, Path(config.generator_init)
            digest = _digest(place)
        weights = {name: folder.state[name] for name in of_role}
        found[role] = Frozen(place.absolute(), digest, weights)
    return found


def _digest(folder: Path) -> str:
    """SHA-256 of a folder's weights, read by one rank. Collective."""
    return on_first_rank(lambda: sha256_file(folder / WEIGHTS))
