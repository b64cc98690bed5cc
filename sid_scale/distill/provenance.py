"""What a run descends from: told by its generators, compared when it resumes."""

import dataclasses
from pathlib import Path
from typing import Any

from sid_scale.config.run import RunConfig
from sid_scale.data.shards import ShardIndex
from sid_scale.networks.edm2.network import EDM2Config
from sid_scale.networks.folder import WEIGHTS, NetworkFolder, sha256
from sid_scale.ranks import on_first_rank

# What a generator folder says of its teacher and of the run that made it.
TEACHER_FACTS = ("what", "license", "images_seen", "source")
START_FACTS = ("method", "images_seen")
METHOD_SETTINGS = (
    "batch_size",
    "seed",
    "dropout",
    "learning_rate",
    "adam",
    "objective",
    "warm_up",
    "ema",
    "forced_weight_norm",
)


def provenance_of(
    config: RunConfig, teacher: NetworkFolder, start: NetworkFolder
) -> dict[str, Any]:
    """What the run's generators say of where they come from. Collective."""
    # Gigabytes: one reader is enough.
    digest = on_first_rank(lambda: sha256(Path(config.teacher) / WEIGHTS))
    settings = dataclasses.asdict(config)
    beginning = {k: v for k, v in start.origin.items() if k in START_FACTS}
    return {
        "kind": "generator",
        "method": config.method,
        "init_sigma": config.objective.init_sigma,
        "steps": config.steps,
        "teacher": Path(config.teacher).name,
        "teacher_sha256": digest,
        "teacher_origin": {k: v for k, v in teacher.origin.items() if k in TEACHER_FACTS},
        **({"generator_init": beginning} if start is not teacher else {}),
        "settings": {key: settings[key] for key in METHOD_SETTINGS},
    }


def compatibility_of(
    architecture: EDM2Config, index: ShardIndex | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """What a resumed run must have in common with the one before, besides settings."""
    body = dataclasses.asdict(dataclasses.replace(architecture, dropout=0.0))
    shape = None
    if index is not None:
        shape = {
            "sample": index.sample_shape,
            "classes": index.num_classes,
            "samples": index.samples,
            "shards": len(index.shards),
        }
    return {
        "architecture": body,
        "data_shape": shape,
        "teacher_sha256": origin["teacher_sha256"],
    }
