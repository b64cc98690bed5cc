"""The smallest networks and shards on which everything still happens."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from sid_scale.codecs import IdentityCodec
from sid_scale.config.run import RunConfig, load_config
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.methods import Role
from sid_scale.methods.sid import SiD
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.folder import NetworkFolder, save_network

ARCHITECTURE = EDM2Architecture(
    img_resolution=8,
    img_channels=3,
    label_dim=4,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
    channels_per_head=16,
    logvar_channels=16,
)


NO_WARM_UP = {
    "objective.warm_up.generator_images": 0,
    "objective.warm_up.adversarial_images": 0,
}


def tiny_folder(seed: int = 0, architecture: EDM2Architecture = ARCHITECTURE) -> NetworkFolder:
    """Weights whose every part matters, as they are in files: no gain is zero."""
    torch.manual_seed(seed)
    state = EDM2(architecture).state_dict()
    for name, tensor in state.items():
        if name.endswith("_gain"):
            tensor.fill_(0.7)
        elif name.endswith(".weight"):
            state[name] = torch.randn_like(tensor)
    return NetworkFolder(architecture, state)


def tiny_network(seed: int = 0) -> Denoiser:
    """The network with these weights."""
    return tiny_folder(seed).build()


def write_teacher(folder: Path, seed: int = 0) -> Path:
    save_network(folder, tiny_folder(seed))
    return folder


def random_images(samples: int, shape: tuple[int, int, int] = (3, 8, 8)) -> np.ndarray:
    """Those that `write_data` stores, uint8 (samples, *shape)."""
    return np.random.default_rng(0).integers(0, 256, (samples, *shape), dtype=np.uint8)


def write_data(folder: Path, samples: int = 40) -> Path:
    images = random_images(samples)
    write_shards(
        folder,
        ((f"{i:03d}", images[i], i % ARCHITECTURE.label_dim) for i in range(samples)),
        codec=IdentityCodec().describe(),
        num_classes=ARCHITECTURE.label_dim,
        shard_samples=16,
        dtype="uint8",
    )
    return folder


def write_deepspeed_json(folder: Path, stage: int, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"stage{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **settings}))
    return path


def settings(folder: Path, *, warm_up: bool = True, **overrides: Any) -> list[str]:
    """`key=value` settings of a run of four iterations in `folder` (made by `prepare`).

    `warm_up` says whether its method has one; it is then over from the start.
    """
    values = {
        "run_dir": folder / "run",
        "teacher": folder / "teacher",
        "data": folder / "data",
        "deepspeed": folder / "stage2.json",
        "batch_size": 8,
        "micro_batch": 4,
        "total_images": 32,
        "log.every_images": 8,
        "log.samples_every_images": 16,
        "log.samples": 4,
        "checkpoint.every_images": 16,
        **(NO_WARM_UP if warm_up else {}),
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return [f"{key}={value}" for key, value in values.items()]


def prepare(folder: Path) -> Path:
    """Teacher, shards, DeepSpeed JSONs of all stages and an empty YAML in `folder`."""
    write_teacher(folder / "teacher")
    write_data(folder / "data")
    for stage in (0, 1, 2, 3):
        write_deepspeed_json(folder, stage)
    (folder / "run.yaml").write_text("")
    return folder


@contextmanager
def freezing_generator(*freeze: str) -> Iterator[None]:
    """Inside, the generators of SiD and SiDA leave these weights as they are."""
    roles = SiD.roles

    def freezing(method: SiD) -> tuple[Role, ...]:
        generator, *others = roles(method)
        return (dataclasses.replace(generator, freeze=freeze), *others)

    with patch.object(SiD, "roles", freezing):
        yield


def config(folder: Path, *, warm_up: bool = True, **overrides: Any) -> RunConfig:
    return load_config(folder / "run.yaml", settings(folder, warm_up=warm_up, **overrides))
