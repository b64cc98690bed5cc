"""Published networks: files of EDM, EDM2, DDO, SiD, SiDA and SiD2A to network folders.

A file holds a dict: under `ema` the network, in the teachers' files more; SiD's hold the network
alone. A network holds the arguments that it was made with: the architecture comes from them and is
compared with the weights. Its class says of which family it is (`FAMILIES`). Nothing in the file is
run (`sid_scale/pickles`).
"""

import dataclasses
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sid_scale.hashing import sha256_file
from sid_scale.networks import Architecture
from sid_scale.networks.edm import published_settings as edm
from sid_scale.networks.edm2 import published_settings as edm2
from sid_scale.networks.folder import NetworkFolder, check_state, save_network
from sid_scale.networks.published_codec import read_codec
from sid_scale.networks.teachers import publication
from sid_scale.pickles.reader import PickledObject, PickledTensor, PickleError, open_pickle
from sid_scale.pickles.values import as_object, mapping, read_tensors

Kind = Literal["teacher", "generator"]

DTYPES = ("F32", "F16", "BF16")  # of weights
INIT_SIGMA = 2.5  # of every generator that SiD, SiDA and SiD2A have published


class Family(NamedTuple):
    """The files of one family of networks."""

    teachers: tuple[str, ...]  # classes; SiD's generators may be of them as well
    generators: tuple[str, ...]  # classes of generators alone
    has_logvar: bool  # whether every teacher has an uncertainty head
    has_latents: bool  # whether some work on latents
    # (network, names of its weights, the file's name for errors) -> its architecture
    read_architecture: Callable[[PickledObject, Collection[str], str], Architecture]


FAMILIES = (
    Family(
        teachers=("Precond",),
        generators=("EDM_2_Precond_EncoderDecoder", "EDM_2_Precond_Generator"),
        has_logvar=True,
        has_latents=True,
        read_architecture=edm2.read_architecture,
    ),
    Family(
        teachers=("EDMPrecond",),
        generators=("EDMPrecond_EncoderDecoder",),
        has_logvar=False,
        has_latents=False,
        read_architecture=edm.read_architecture,
    ),
)
# Classes of the networks with which EDM compares its own.
OTHER_PRECONDITIONING = ("VPPrecond", "VEPrecond", "iDDPMPrecond")


@dataclass(frozen=True)
class PublishedNetwork:
    """A network, as its published file describes it."""

    class_name: str
    architecture: Architecture
    state: dict[str, Tensor]  # names and shapes of the modules in memory, dtypes of the file
    codec: dict[str, Any]  # description, see codecs.py
    kind: Kind  # what it seems to be, by its class, the file's other contents and the file's name


def read_published(
    path: str | os.PathLike[str],
    vae: str | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> PublishedNetwork:
    """Reads a published network.

    Memory: the weights in the file's dtype, and a few times the largest of them. A temporary file
    holds the weights in between.

    Args:
        path: the .pkl file.
        vae: folder of the VAE (diffusers' form) of a network of latents; None: the name in the
            file, or the VAE of EDM2's models.
        scratch: a folder with room for the temporary file; None: the system's.

    Raises:
        PickleError: not such a file, damaged, asks for anything that a network has no need of,
            or of a kind that cannot be represented here.
        CheckpointError: the weights are not those of the architecture.
    """
    where = str(path)
    with open_pickle(path, scratch) as found:
        contents = mapping(found, f"{where}: the whole")
        if "ema" not in contents:
            held = ", ".join(ascii(key[:64]) for key in list(contents)[:8]) or "nothing"
            raise PickleError(f"{where}: no network under 'ema'; it holds {held}")
        network = as_object(contents["ema"], f"{where}: ema")
        family = _family(network.class_name, where)
        tensors = read_tensors(network, where)
        architecture = family.read_architecture(network, tensors.keys(), where)
        _check_tensors(architecture, tensors, os.path.getsize(path), where)
        channels = architecture.sample_shape[0] if family.has_latents else None
        codec = read_codec(contents.get("encoder"), channels, vae, where)
        state = architecture.from_file({name: tensor.load() for name, tensor in tensors.items()})
    is_generator = (
        network.class_name in family.generators
        or (family.has_logvar and architecture == architecture.headless())
        or (contents.keys() == {"ema"} and publication(Path(path).name) is None)
    )
    kind: Kind = "generator" if is_generator else "teacher"
    return PublishedNetwork(network.class_name, architecture, state, codec, kind)


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of a generator that its file does not hold."""

    init_sigma: float = INIT_SIGMA
    steps: int = 1
    method: str | None = None
    teacher: str | None = None  # name of the teacher's file or folder


def import_published(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    generator: GeneratorSettings | None = None,
    vae: str | None = None,
) -> NetworkFolder:
    """Makes a network folder of a published network; the weights keep their dtype.

    Args:
        source: see `read_published`, as `vae` and the errors.
        folder: must not exist.
        kind: what the network is; None: see `PublishedNetwork.kind`.
        generator: of a generator; None: as published.

    Raises:
        PickleError: also if `folder` exists, or `generator` is given for a teacher.
    """
    if os.path.lexists(folder):
        raise PickleError(f"{folder}: exists already; remove it or name another")
    around = Path(folder).absolute().parents
    scratch = next(place for place in around if place.is_dir())
    published = read_published(source, vae, scratch)
    kind = kind or published.kind
    if kind == "teacher" and generator is not None:
        raise PickleError(
            f"{source}: seems to be a teacher (by its class {published.class_name}, what else the "
            "file holds, and the file's name), for which init_sigma, steps, method and teacher "
            "have no meaning; if it is a generator, say so (--kind generator)"
        )
    provenance: dict[str, Any] = {"kind": kind}
    if kind == "generator":
        provenance |= dataclasses.asdict(generator or GeneratorSettings())
    provenance |= {"source": Path(source).name, "source_sha256": sha256_file(source)}
    network = NetworkFolder(published.architecture, published.state, published.codec, provenance)
    save_network(folder, network)
    return network


def _family(class_name: str, where: str) -> Family:
    known: list[str] = []
    for family in FAMILIES:
        if class_name in family.teachers + family.generators:
            return family
        known += family.teachers + family.generators
    if class_name in OTHER_PRECONDITIONING:
        raise PickleError(
            f"{where}: ema is of class {class_name}, whose preconditioning is not EDM's and is not "
            "known here; take the network that EDM trained (edm-*.pkl, not baseline-*.pkl)"
        )
    raise PickleError(f"{where}: ema is of class {class_name}; known are {', '.join(known)}")


def _check_tensors(
    architecture: Architecture, tensors: dict[str, PickledTensor], file_size: int, where: str
) -> None:
    """Compares names, shapes and dtypes before any weight is loaded."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise PickleError(
                f"{where}: {name} is of dtype {tensor.dtype}; networks here have "
                f"{', '.join(DTYPES)}"
            )
    # An element has two bytes at least. Loading a tensor may read the whole of its storage.
    least = sum(
        max(2 * math.prod(tensor.shape), tensor.stored_bytes) for tensor in tensors.values()
    )
    if least > file_size:  # several tensors in one storage: a small file, huge weights
        raise PickleError(f"{where}: has {file_size} bytes, but weights of {least} at least")
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    remedy = "The file says both, so one of them was changed; take it from its publisher."
    check_state(architecture, architecture.from_file(shapes), where, remedy)
