"""From a checkpoint's shards to one network folder: offline, tensor by tensor.

Needs no GPU, no ranks, no DeepSpeed, and little memory: one parameter at a time is put together
from the slices that the ranks wrote and goes into `model.safetensors`. Files are memory-mapped,
and unmapped every MAPPED_BYTES, since pages of a map count as memory while it lasts. A checkpoint
has no frozen weights: they come from the folder that the network started from.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sid_scale.distill.start_weights import StartWeights, open_start
from sid_scale.methods import GENERATOR
from sid_scale.networks.folder import (
    CheckpointError,
    parse_description,
    refuse_other_folder,
    stream_network,
)
from sid_scale.zero.saved import (
    BUFFERS,
    STATE,
    Slices,
    TrainingStateError,
    opened,
    read_manifest,
    read_state,
)

MAPPED_BYTES = 64 << 20


def networks_in(checkpoint: Path) -> dict[str, tuple[str, str]]:
    """What `consolidate` can make of a checkpoint: name -> role and kind.

    "generator_ema" is what the run evaluates and publishes; the others are the weights of the
    trained networks, by role.

    Raises:
        TrainingStateError: the checkpoint is incomplete or damaged.
    """
    read_manifest(checkpoint)
    described = read_state(checkpoint).get("networks")
    if not isinstance(described, dict) or GENERATOR not in described:
        raise TrainingStateError(f"checkpoint {checkpoint}: {STATE} describes no {GENERATOR}")
    weights = {role: (role, "master") for role in described}
    return {f"{GENERATOR}_ema": (GENERATOR, "ema"), **weights}


def consolidate(
    checkpoint: Path,
    role: str,
    kind: str,
    out: Path,
    dtype: torch.dtype = torch.float32,
    starts: Sequence[Path] = (),
) -> None:
    """Writes one network of a checkpoint as the network folder `out`.

    Args:
        role: a network that was trained, such as "generator".
        kind: "master" for its weights, "ema" for their average.
        dtype: of the weights in the file; float32 is exact. Buffers stay float32.
        starts: folders that frozen weights may be in, beside the one that the checkpoint names.

    Raises:
        TrainingStateError: the checkpoint is incomplete, damaged or lacks this network, or the
            folder that it started from is gone.
        CheckpointError: `out` holds something else.
    """
    refuse_other_folder(out)
    checkpoint = checkpoint.resolve()  # what `latest` is now it may not be in a minute
    manifest = read_manifest(checkpoint)
    parts, buffers = manifest.of(role, kind), manifest.of(role, BUFFERS)
    if not parts or not buffers:
        raise TrainingStateError(f"checkpoint {checkpoint} has no {kind} of a {role}")
    faults = manifest.faults([*parts, *buffers, STATE])
    if faults:
        raise TrainingStateError(f"checkpoint {checkpoint} is damaged: {'; '.join(faults[:5])}")
    try:
        state = read_state(checkpoint)
        description = state["networks"][role]
        architecture, _, _ = parse_description(description, str(checkpoint))
    except (KeyError, CheckpointError) as error:
        raise TrainingStateError(
            f"checkpoint {checkpoint} does not say how its {role} is built ({error})"
        ) from error
    described = state.get("frozen", {}).get(role)
    frozen = open_start(described, starts, f"checkpoint {checkpoint}: its {role}")
    with torch.device("meta"):
        shapes = {name: meta.shape for name, meta in architecture.build().state_dict().items()}
    with opened(checkpoint, parts) as slices, opened(checkpoint, buffers) as constants:
        # A Fourier frequency rounded to half precision is another feature.
        exact = dict.fromkeys(constants.parameters(), torch.float32)
        dtypes = dict.fromkeys(shapes, dtype) | exact
        gather = _Gather(slices, constants, frozen, shapes, dtypes)
        stream_network(out, description, gather, dtypes)


class _Gather:
    """Full tensors by name, each read when it is asked for."""

    def __init__(
        self,
        slices: Slices,
        buffers: Slices,
        frozen: StartWeights | None,
        shapes: dict[str, torch.Size],
        dtypes: dict[str, torch.dtype],
    ):
        self._sources: dict[str, Slices | StartWeights] = dict.fromkeys(
            buffers.parameters(), buffers
        )
        if frozen is not None:
            self._sources |= dict.fromkeys(frozen.names, frozen)
        self._frozen = frozen
        self._slices, self._shapes, self._dtypes = slices, shapes, dtypes
        self._mapped = 0

    def __call__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        values = torch.empty(shape.numel(), dtype=self._dtypes[name])
        source = self._sources.get(name, self._slices)
        source.fill(values, name, 0)
        self._mapped += 4 * len(values)
        if self._mapped >= MAPPED_BYTES:
            self._slices.close()
            if self._frozen is not None:
                self._frozen.close()
            self._mapped = 0
        return values.view(shape)
