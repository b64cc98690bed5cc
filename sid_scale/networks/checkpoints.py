"""Networks as folders: `model.safetensors` and `config.json`, nothing that can carry code.

On disk, parameters bear EDM2's own names and shapes (gains of shape []); in memory the gains
have shape [1], for DeepSpeed's sake. This file is the border between the two.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.networks.edm2 import EDM2, EDM2Config

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class CheckpointError(SidScaleError):
    """A network folder that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class NetworkFolder:
    """Contents of a network folder.

    `codec` says how pixels become the network's images (see `codecs.py`); `origin` what the
    network is and where it comes from: free-form for a teacher; for a generator `init_sigma`,
    `steps`, `method`, `images_seen` and `teacher_sha256`.
    """

    architecture: EDM2Config
    state: dict[str, Tensor]  # names and shapes of the modules in memory
    codec: dict[str, Any] = field(default_factory=lambda: {"kind": "identity"})
    origin: dict[str, Any] = field(default_factory=dict)

    def build(self, compute_dtype: torch.dtype = torch.float32) -> EDM2:
        """A network with a copy of these weights, on the CPU, in evaluation mode."""
        with torch.device("meta"):
            network = EDM2(self.architecture, compute_dtype)
        network.load_state_dict({k: v.clone() for k, v in self.state.items()}, assign=True)
        return network.eval()


def to_edm2_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Memory -> disk: gains of shape [1] become []."""
    return {k: v.reshape(()) if k.endswith("_gain") else v for k, v in state.items()}


def from_edm2_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Disk -> memory: gains of shape [] become [1]."""
    return {k: v.reshape(1) if k.endswith("_gain") and not v.ndim else v for k, v in state.items()}


def check_state(
    architecture: EDM2Config,
    state: dict[str, Tensor],
    where: str,
    remedy: str = f"Check {CONFIG} against the weights' source.",
) -> None:
    """Compares names and shapes in `state` (as in memory) with the architecture's.

    Raises:
        CheckpointError: lists up to eight names that are missing, foreign or of another shape.
    """
    with torch.device("meta"):
        expected = EDM2(architecture).state_dict()
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"unknown {name}" for name in state if name not in expected]
    faults += [
        f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise CheckpointError(
            f"{where}: the weights are not those of its architecture: "
            f"{'; '.join(faults[:8])}{more}. {remedy}"
        )


def save_network(folder: str | os.PathLike[str], network: NetworkFolder) -> None:
    """Writes a network folder, replacing one that exists; it is complete or not there.

    Weights are written in the dtype that they have; `load_network` widens them.
    """
    folder = Path(folder)
    check_state(network.architecture, network.state, str(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, network)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # a full disk, for one
            raise CheckpointError(f"{folder}: cannot be written: {error}") from error
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def _write(folder: Path, network: NetworkFolder) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in to_edm2_shapes(network.state).items()}
    config = {
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(network.architecture),
        "codec": network.codec,
        "origin": network.origin,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors writes 0600


def load_network(folder: str | os.PathLike[str]) -> NetworkFolder:
    """Reads a network folder; weights come as float32.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format, or the weights are
            not those of the architecture.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no {name} there. A network folder holds {CONFIG} and {WEIGHTS}."
            )
    try:
        config = json.loads((folder / CONFIG).read_text())
        version = config["format_version"]
        raw = dict(config["architecture"])
        for key in ("channel_mult", "attn_resolutions"):
            raw[key] = tuple(raw[key])
        architecture = EDM2Config(**raw)
        codec, origin = config["codec"], config["origin"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not a network description: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: format version {version}; this program reads {FORMAT_VERSION}."
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: damaged ({error}); fetch or write it again."
        ) from error
    state = from_edm2_shapes({k: v.float() for k, v in tensors.items()})
    check_state(architecture, state, str(folder / WEIGHTS))
    return NetworkFolder(architecture, state, codec, origin)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
