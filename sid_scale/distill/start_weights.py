"""Frozen weights, read offline from the folder that a network started from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sid_scale.hashing import sha256_file
from sid_scale.networks import Architecture
from sid_scale.networks.folder import WEIGHTS, load_network, map_weights
from sid_scale.zero.saved import TrainingStateError


class StartWeights:
    """Some weights of the folder that a network started from, mapped while they are read."""

    def __init__(self, folder: Path, architecture: Architecture, names: Sequence[str]):
        self._folder, self._architecture = folder, architecture
        self.names = names
        self._state: dict[str, Tensor] = {}

    def fill(self, values: Tensor, name: str, start: int) -> None:
        """Copies elements [start, start + numel) of a weight into `values` (numel,).

        Raises:
            TrainingStateError: the folder does not hold all of them.
        """
        self._state = self._state or map_weights(self._folder, self._architecture)
        part = self._state.get(name, values[:0]).flatten()[start : start + len(values)]
        if len(part) != len(values):
            raise TrainingStateError(
                f"{self._folder} lacks {len(values) - len(part)} of {len(values)} elements of "
                f"{name}, which is to come from there; it is another network's"
            )
        values.copy_(part)

    def close(self) -> None:
        """Gives the memory map back; the next `fill` maps anew."""
        self._state = {}


def open_start(
    described: Mapping[str, Any] | None, starts: Sequence[Path], what: str
) -> StartWeights | None:
    """The weights that a network has of the folder it started from; None: it has no such.

    Args:
        described: see frozen.py.
        starts: folders to look at before the one that is described.
        what: the network and where its other weights are, for messages.

    Raises:
        TrainingStateError: none of the folders has these weights, or the description is damaged.
    """
    if described is None:
        return None
    if not _is_description(described):
        raise TrainingStateError(f"{what}: the description of its frozen weights is damaged")
    start = _find_start(described, starts, what)
    return StartWeights(start, load_network(start).architecture, described["weights"])


def _is_description(described: Mapping[str, Any]) -> bool:
    weights = described.get("weights")
    texts = [described.get("start"), described.get("sha256")]
    texts += weights if isinstance(weights, list) else [None]
    return all(isinstance(text, str) and "\0" not in text for text in texts)


def _find_start(described: Mapping[str, Any], starts: Sequence[Path], what: str) -> Path:
    seen = []
    for folder in (*starts, Path(described["start"])):
        try:
            if sha256_file(folder / WEIGHTS) == described["sha256"]:
                return folder
            seen.append(f"{folder} holds other weights")
        except OSError as error:
            seen.append(f"{folder / WEIGHTS} cannot be read ({error.strerror})")
    raise TrainingStateError(
        f"{what} has frozen weights, which are in the folder that it started from alone, and "
        f"{'; '.join(seen)}: name a copy of {described['start']} with --start FOLDER (SHA-256 of "
        f"{WEIGHTS}: {described['sha256']})"
    )
