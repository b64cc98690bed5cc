"""EDM2's and SiD's published networks: files to network folders.

A file holds a dict: under `ema` the network, in EDM2's own files also `encoder`, which defines how
pixels become latents, and more; SiD's hold the network alone. A network holds the arguments that it
was made with: the architecture comes from them and is compared with the weights. Nothing in the
file is run (`sid_scale/pickles`).
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sid_scale.hashing import sha256_file
from sid_scale.networks.edm2.architecture import EDM2Architecture, from_edm2_shapes
from sid_scale.networks.edm2.published_settings import read_architecture, read_codec
from sid_scale.networks.folder import NetworkFolder, check_state, save_network
from sid_scale.pickles.reader import PickledTensor, PickleError, open_pickle
from sid_scale.pickles.values import as_object, mapping, read_tensors

Kind = Literal["teacher", "generator"]

TEACHERS = ("Precond",)
GENERATORS = ("EDM_2_Precond_EncoderDecoder", "EDM_2_Precond_Generator")  # and `Precond`
DTYPES = ("F32", "F16", "BF16")  # of weights
INIT_SIGMA = 2.5  # of every generator that SiD, SiDA and SiD2A have published


@dataclass(frozen=True)
class PublishedNetwork:
    """A network, as its published file describes it."""

    class_name: str
    architecture: EDM2Architecture
    state: dict[str, Tensor]  # names and shapes of the modules in memory, dtypes of the file
    codec: dict[str, Any]  # description, see codecs.py
    alone: bool  # the file holds nothing else

    @property
    def kind(self) -> Kind:
        """By class; of `Precond`, SiD's generators have no uncertainty head or are alone."""
        headless = not self.architecture.logvar_channels
        is_generator = self.class_name in GENERATORS or headless or self.alone
        return "generator" if is_generator else "teacher"


def read_edm2(
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
        if network.class_name not in TEACHERS + GENERATORS:
            raise PickleError(
                f"{where}: ema is of class {network.class_name}; known are "
                f"{', '.join(TEACHERS + GENERATORS)}"
            )
        tensors = read_tensors(network, where)
        architecture = read_architecture(network, where)
        if not any(name.startswith("logvar") for name in tensors):
            architecture = dataclasses.replace(architecture, logvar_channels=0)
        _check_tensors(architecture, tensors, os.path.getsize(path), where)
        codec = read_codec(contents.get("encoder"), architecture, vae, where)
        state = from_edm2_shapes({name: tensor.load() for name, tensor in tensors.items()})
    alone = contents.keys() == {"ema"}
    return PublishedNetwork(network.class_name, architecture, state, codec, alone)


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of a generator that its file does not hold."""

    init_sigma: float = INIT_SIGMA
    steps: int = 1
    method: str | None = None


def import_edm2(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    generator: GeneratorSettings | None = None,
    vae: str | None = None,
) -> NetworkFolder:
    """Makes a network folder of a published network; the weights keep their dtype.

    Args:
        source: see `read_edm2`, as `vae` and the errors.
        folder: must not exist.
        kind: what the network is; None: see `PublishedNetwork.kind`.
        generator: of a generator; None: as published.

    Raises:
        PickleError: also if `folder` exists, or `generator` is given for a teacher.
    """
    if os.path.lexists(folder):
        raise PickleError(f"{folder}: exists already; remove it or name another")
    around = Path(folder).absolute().parents
    published = read_edm2(source, vae, scratch=next(place for place in around if place.is_dir()))
    kind = kind or published.kind
    if kind == "teacher" and generator is not None:
        raise PickleError(
            f"{source}: seems to be a teacher (class {published.class_name}, with uncertainty "
            "head, not alone in its file), for which init_sigma, steps and method have no "
            "meaning; if it is a generator, say so (--kind generator)"
        )
    provenance: dict[str, Any] = {"kind": kind}
    if kind == "generator":
        provenance |= dataclasses.asdict(generator or GeneratorSettings())
    provenance |= {"source": Path(source).name, "source_sha256": sha256_file(source)}
    network = NetworkFolder(published.architecture, published.state, published.codec, provenance)
    save_network(folder, network)
    return network


def _check_tensors(
    architecture: EDM2Architecture, tensors: dict[str, PickledTensor], file_size: int, where: str
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
    check_state(architecture, from_edm2_shapes(shapes), where, remedy)
