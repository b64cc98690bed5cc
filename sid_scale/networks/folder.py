"""Networks as folders: `model.safetensors` and `config.json`, nothing that can carry code.

On disk, parameters have their publisher's names and shapes; `Architecture.to_file` and
`from_file` translate.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.networks import Architecture, architecture_from, describe_architecture
from sid_scale.networks.denoiser import Denoiser
from sid_scale.tensor_file import Entry, write_tensors

FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class CheckpointError(SidScaleError):
    """A network folder that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class NetworkFolder:
    """Contents of a network folder.

    `state` has the weights as they are trained and as files hold them: a network's own may differ
    (`Denoiser.load_weights`). `codec` says how pixels become the network's images (see
    `codecs.py`); `provenance` what the network is and where it comes from: free-form for a
    teacher; for a generator `init_sigma`, `steps`, `method`, `images_seen` and `teacher_sha256`.
    """

    architecture: Architecture
    state: dict[str, Tensor]  # names and shapes of the modules in memory
    codec: dict[str, Any] = field(default_factory=lambda: {"kind": "identity"})
    provenance: dict[str, Any] = field(default_factory=dict)

    def with_architecture(self, architecture: Architecture) -> "NetworkFolder":
        """The same weights for another architecture; those that it has no use for are left out."""
        with torch.device("meta"):
            wanted = architecture.build().state_dict()
        state = {name: tensor for name, tensor in self.state.items() if name in wanted}
        return dataclasses.replace(self, architecture=architecture, state=state)

    def build(
        self, compute_dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Denoiser:
        """A network with these weights, in the form that its forward pass reads; it cannot be
        trained, and is in evaluation mode."""
        with torch.device("meta"):
            network = self.architecture.build(compute_dtype)
        network.load_weights(self.state, device)
        return network.requires_grad_(False).eval()

    def build_zero(
        self,
        compute_dtype: torch.dtype,
        stored: torch.dtype,
        device: torch.device | str,
        *,
        frozen: Collection[str] = (),
    ) -> Denoiser:
        """A network to be trained: the buffers are these, the parameters zeros in `stored`.

        Training begins with what the forward pass reads of `state`; the `frozen` ones have that
        form already.
        """
        with torch.device("meta"):
            network = self.architecture.build(compute_dtype).to(stored)
        network.to_empty(device=device)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            for name in frozen:
                weight = network.forward_form(name, self.state[name])
                network.get_parameter(name).copy_(weight)
            for name, buffer in network.named_buffers():
                buffer.copy_(self.state[name])
        return network


def check_state(
    architecture: Architecture,
    state: dict[str, Tensor],
    where: str,
    remedy: str = f"Check {CONFIG} against the weights' source.",
) -> None:
    """Compares names and shapes in `state` (as in memory) with the architecture's.

    Raises:
        CheckpointError: lists up to eight names that are missing, foreign or of another shape.
    """
    with torch.device("meta"):
        expected = architecture.build().state_dict()
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

    Weights are written in the dtype that they have.
    """
    check_state(network.architecture, network.state, str(folder))
    description = describe(network.architecture, network.codec, network.provenance)
    dtypes = {name: tensor.dtype for name, tensor in network.state.items()}
    stream_network(folder, description, network.state.__getitem__, dtypes)


def describe(
    architecture: Architecture, codec: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """Contents of a network folder's `config.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "architecture": describe_architecture(architecture),
        "codec": codec,
        "provenance": provenance,
    }


def stream_network(
    folder: str | os.PathLike[str],
    description: dict[str, Any],
    tensor: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Writes a network folder as `save_network` does, never holding more than one tensor.

    `tensor(name)` is a parameter or buffer by its name, of the shape that it has in memory;
    `dtypes[name]` what it is in the file.

    Raises:
        CheckpointError: something else is there, or the disk is full, or read-only.
    """
    folder = Path(folder)
    refuse_other_folder(folder)
    architecture, _, _ = parse_description(description, str(folder))
    with torch.device("meta"):
        shapes = architecture.to_file(architecture.build().state_dict())
    entries = [Entry(name, dtypes[name], tuple(meta.shape)) for name, meta in shapes.items()]
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        values = (tensor(e.name).detach().to(e.dtype).reshape(e.shape) for e in entries)
        write_tensors(partial / WEIGHTS, entries, values)
        take_name(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):  # a full disk, for one
            raise CheckpointError(f"{folder}: cannot be written: {error}") from error
        raise


def take_name(partial: Path, folder: Path) -> None:
    """Puts a finished folder where an older one may be, which goes only then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def refuse_other_folder(folder: Path) -> None:
    """Makes sure that writing a network folder replaces nothing but one.

    Raises:
        CheckpointError: something else is there.
    """
    other = folder.exists() and not (folder / CONFIG).is_file()
    if other and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and is no network folder: name another one, or remove it"
        )


def load_network(folder: str | os.PathLike[str]) -> NetworkFolder:
    """Reads a network folder. Weights have the file's dtype, and are mapped: they are read from
    the disk when they are used, and ranks of a host share what is in memory.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format, or the weights are
            not those of the architecture.
    """
    folder = Path(folder)
    described = read_description(folder)
    state = map_weights(folder, described.architecture)
    check_state(described.architecture, state, str(folder / WEIGHTS))
    return dataclasses.replace(described, state=state)


def map_weights(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    """The weights of a network folder, mapped, by their names in memory.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return architecture.from_file(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: damaged ({error}); fetch or write it again."
        ) from error


def read_description(folder: str | os.PathLike[str]) -> NetworkFolder:
    """A network folder without its weights: what `config.json` says.

    Raises:
        CheckpointError: a file is missing, or `config.json` is damaged or not of this format.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no {name} there. A network folder holds {CONFIG} and {WEIGHTS}; "
                "`sid-scale import` makes one of a published pickle."
            )
    try:
        description = json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not a network description: {error}") from error
    architecture, codec, provenance = parse_description(description, str(folder / CONFIG))
    return NetworkFolder(architecture, {}, codec, provenance)


def parse_description(
    description: Any, where: str
) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """Architecture, codec and provenance out of a folder's `config.json`.

    Raises:
        CheckpointError: it is none, or of another version.
    """
    try:
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where}: format version {version}; this program reads {FORMAT_VERSION}. "
                "Import the network anew with `sid-scale import`."
            )
        architecture = architecture_from(description["architecture"])
        codec, provenance = dict(description["codec"]), dict(description["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: not a network description: {error}") from error
    return architecture, codec, provenance
