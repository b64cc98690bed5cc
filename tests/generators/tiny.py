"""Generator folders, made cheaply: networks that were never distilled, but are otherwise whole."""

import dataclasses
from pathlib import Path
from typing import Any

from sid_scale.codecs import open_codec
from sid_scale.demo.prepare import TEACHER
from sid_scale.generators.folder import adopt_vae
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from tests.tiny import tiny_folder

PROVENANCE = {"kind": "generator", "method": "sida", "init_sigma": 2.5, "steps": 1}


def save_generator(folder: Path, network: NetworkFolder, **provenance: Any) -> Path:
    """A generator folder from a network's weights but for its uncertainty head."""
    state = {k: v for k, v in network.state.items() if not k.startswith("logvar")}
    architecture = network.architecture.headless()
    save_network(
        folder, NetworkFolder(architecture, state, network.codec, {**PROVENANCE, **provenance})
    )
    return folder


def tiny_generator(folder: Path, **provenance: Any) -> Path:
    """Makes 8x8 pixels of four classes, without a codec."""
    return save_generator(folder, tiny_folder(), **provenance)


def demo_generator(folder: Path, **provenance: Any) -> Path:
    """The demo's teacher as a generator, with its VAE: digits, if blurred ones."""
    teacher = load_network(TEACHER)
    save_generator(folder, teacher, init_sigma=1.0, teacher="teacher", **provenance)
    adopt_vae(folder, open_codec(teacher.codec, beside=TEACHER))
    return folder


def edit_description(folder: Path, **parts: Any) -> None:
    """Replaces parts (`codec`, `provenance`) of a folder's description."""
    save_network(folder, dataclasses.replace(load_network(folder), **parts))
