"""Snapshots of averages, made by hand: of networks that were never trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_scale.codecs import IdentityCodec
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import describe
from sid_scale.zero.snapshots import EMA_SNAPSHOTS, write_snapshot
from tests.generators.tiny import PROVENANCE
from tests.tiny import ARCHITECTURE, tiny_folder

GENERATOR = ARCHITECTURE.headless()
TWO = {8: (0.05, 0.1), 16: (0.05, 0.1)}  # moments and widths


def random_parameters(
    seed: int, architecture: EDM2Architecture = GENERATOR
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, buffers) of a network."""
    state = tiny_folder(seed, architecture).state
    buffers = dict(architecture.build().named_buffers())
    return (
        {name: value for name, value in state.items() if name not in buffers},
        {name: state[name] for name in buffers},
    )


def write_averages(
    run: Path,
    images_seen: int,
    averages: Mapping[float, Mapping[str, Tensor]],
    architecture: EDM2Architecture = GENERATOR,
    frozen: dict[str, Any] | None = None,
) -> Path:
    """One snapshot, in the folder of a run."""
    provenance = {**PROVENANCE, "images_seen": images_seen, "settings": {"ema": {"half_life": 9.0}}}
    return write_snapshot(
        run / EMA_SNAPSHOTS,
        images_seen,
        averages.items(),
        random_parameters(0, architecture)[1],
        describe(architecture, IdentityCodec().describe(), provenance),
        frozen,
    )


def write_run(run: Path, moments: Mapping[int, tuple[float, ...]] = TWO) -> Path:
    """A run folder with snapshots of random averages, and settings that name a teacher."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"method: sida\nteacher: {run.parent / 'teacher'}\n")
    for images_seen, widths in moments.items():
        write_averages(run, images_seen, {w: average_of(images_seen, w) for w in widths})
    return run


def average_of(images_seen: int, width: float) -> dict[str, Tensor]:
    """The parameters of a stored average of `write_run`."""
    return random_parameters(images_seen + round(1e6 * width))[0]


def numbered(place: int, count: int) -> dict[str, Tensor]:
    """Parameters of which the first `count` elements of one tensor say which average it is: a blend
    then shows its coefficients there."""
    parameters, _ = random_parameters(0)
    name = numbered_parameter()
    assert parameters[name].numel() >= count
    marked = torch.zeros_like(parameters[name])
    marked.view(-1)[place] = 1
    return {**parameters, name: marked}


def numbered_parameter() -> str:
    """The largest one."""
    parameters, _ = random_parameters(0)
    return max(parameters, key=lambda name: parameters[name].numel())
