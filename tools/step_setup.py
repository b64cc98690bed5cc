"""What `bench_step.py` measures: a run on synthetic shards and, where there is none, a synthetic
teacher."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sid_scale.codecs import open_codec
from sid_scale.config.run import RunConfig, load_config, to_yaml
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.shards import PIXELS
from sid_scale.errors import SidScaleError
from sid_scale.methods.settings import SiDObjective
from sid_scale.networks import Architecture
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.sizes import SIZES, imagenet512
from sid_scale.networks.folder import NetworkFolder, read_description, save_network
from sid_scale.networks.teachers import published_architecture
from sid_scale.zero.settings import find_deepspeed_json

SMALL = {
    "tiny": EDM2Architecture(8, 4, 10, 16, (1, 2), 1, (4,), 16, 16),
    "30m": EDM2Architecture(32, 4, 1000, model_channels=64),
}
NETWORKS = ("generator", "fake_score", "teacher")
GAIN = 0.5  # of the synthetic networks: published initial gains are zero, and hide most of it
SAMPLES = 256  # in the synthetic shards


def write_teacher(folder: Path, architecture: Architecture) -> None:
    """A network folder with random weights."""
    torch.manual_seed(0)
    state = architecture.build().state_dict()
    for name, value in state.items():
        if name.endswith("_gain"):
            value.fill_(GAIN)
    save_network(folder, NetworkFolder(architecture, state))


def write_data(folder: Path, teacher: Path) -> None:
    """Shards of random samples that fit the network folder `teacher`."""
    network = read_description(teacher)
    codec = open_codec(network.codec, beside=teacher)
    shape, dtype = codec.stored_shape(network.architecture.sample_shape), codec.stored_dtypes[0]
    rng = np.random.default_rng(0)
    classes = max(network.architecture.label_dim, 1)
    stored: np.ndarray
    if dtype == PIXELS:
        stored = rng.integers(0, 256, (SAMPLES, *shape), dtype=np.uint8)
    else:
        stored = rng.standard_normal((SAMPLES, *shape), dtype=np.float32)
        stored[:, shape[0] // 2 :] = np.abs(stored[:, shape[0] // 2 :])
    write_shards(
        folder,
        ((f"{i:06d}", sample, i % classes) for i, sample in enumerate(stored)),
        codec=codec.describe(),
        num_classes=classes,
        shard_samples=SAMPLES,
        dtype=dtype,
    )


def prepare(options: argparse.Namespace, folder: Path) -> RunConfig:
    """Teacher, shards and DeepSpeed JSON in `folder`, and the run of it all in bench.yaml there."""
    given = load_config(options.config, options.overrides) if options.config else None
    if given is not None and not isinstance(given.objective, SiDObjective):
        raise SidScaleError(
            f"method {given.method}: iterations of SiD, SiDA and SiD2A are measured here; "
            "tools/count_step.py counts those of any method"
        )
    teacher = folder / "teacher"
    if given is not None and Path(given.teacher).exists():
        teacher = Path(given.teacher).resolve()
    else:
        write_teacher(teacher, _architecture(options, given))
    write_data(folder / "data", teacher)
    (folder / "deepspeed.json").write_text(json.dumps(_deepspeed_json(options, given)))
    (folder / "empty.yaml").write_text("")
    config = load_config(
        options.config or folder / "empty.yaml",
        [f"{key}={value}" for key, value in _settings(options, given, folder, teacher).items()]
        + options.overrides,
    )
    (folder / "bench.yaml").write_text(to_yaml(config))
    return config


def _architecture(options: argparse.Namespace, given: RunConfig | None) -> Architecture:
    """Of the teacher to be made up: the size's, or the one that a preset's teacher is named for."""
    if given is None:
        return SMALL[options.size] if options.size in SMALL else imagenet512(options.size)
    architecture = published_architecture(Path(given.teacher).name)
    if architecture is not None:
        return architecture
    raise SidScaleError(f"teacher: there is no {given.teacher}, nor is that a published name")


def _settings(
    options: argparse.Namespace, given: RunConfig | None, folder: Path, teacher: Path
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "run_dir": folder / "run",
        "teacher": teacher,
        "data": folder / "data",
        "deepspeed": folder / "deepspeed.json",
        "objective.warm_up.generator_images": 0,
        "objective.warm_up.adversarial_images": 0,
    }
    if given is None:
        settings |= {"total_images": 1_000_000_000, "batch_size": 8, "micro_batch": 8}
        settings["dropout"] = SIZES[options.size][2] if options.size in SIZES else 0.0
    elif given.generator_init is not None:
        settings["generator_init"] = teacher
    if options.batch:
        settings["batch_size"] = settings["micro_batch"] = options.batch
    if options.micro_batch:
        settings["micro_batch"] = options.micro_batch
    if options.activations:
        settings |= {f"activations.{name}": options.activations for name in NETWORKS}
    if options.compile:
        settings["compile_blocks"] = True
    return settings


def _deepspeed_json(options: argparse.Namespace, given: RunConfig | None) -> dict[str, Any]:
    """The config's JSON, or stage 0 in float32, with the stage and the dtype that are asked for."""
    config = json.loads(find_deepspeed_json(given.deepspeed).read_text()) if given else {}
    zero = config.setdefault("zero_optimization", {})
    if options.stage is not None:
        zero["stage"] = options.stage
    if options.dtype:
        for name in ("bf16", "fp16", "data_types"):
            config.pop(name, None)
        if options.dtype != "float32":
            config[{"bfloat16": "bf16", "float16": "fp16"}[options.dtype]] = {"enabled": True}
            if zero.get("stage", 0) >= 2:
                config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
