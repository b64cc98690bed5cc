"""What a run descends from: recorded in its generators, compared when it resumes."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from sid_scale.config.run import RunConfig
from sid_scale.data.shards import ShardIndex
from sid_scale.distill.frozen import Frozen
from sid_scale.hashing import sha256_file
from sid_scale.hub.names import name_of
from sid_scale.methods import Role
from sid_scale.networks import Architecture
from sid_scale.networks.folder import WEIGHTS, NetworkFolder
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
    "ema",
    "forced_weight_norm",
)


def provenance_of(
    config: RunConfig,
    teacher: NetworkFolder,
    start: NetworkFolder,
    files: Mapping[str, Path],
    guides: Mapping[str, Path],
) -> dict[str, Any]:
    """What the run's generators say of where they come from. Collective.

    Args:
        files: that the method's losses depend on, by name.
        guides: folders of networks that guide the teacher, by name.
    """
    digest = _digests({"teacher": Path(config.teacher) / WEIGHTS})["teacher"]
    of_files = _digests(files)
    of_guides = _digests({name: folder / WEIGHTS for name, folder in guides.items()})
    settings = dataclasses.asdict(config)
    beginning = {k: v for k, v in start.provenance.items() if k in START_FACTS}
    return {
        "kind": "generator",
        "method": config.method,
        "init_sigma": config.init_sigma,
        "steps": config.steps,
        **_named(Path(config.teacher)),
        "teacher_sha256": digest,
        "teacher_provenance": {k: v for k, v in teacher.provenance.items() if k in TEACHER_FACTS},
        **({"generator_init": beginning} if start is not teacher else {}),
        **({"files_sha256": of_files} if files else {}),
        **({"guides_sha256": of_guides} if guides else {}),
        "settings": _with_names(
            {key: settings[key] for key in METHOD_SETTINGS}, {*files.values(), *guides.values()}
        ),
    }


def _named(teacher: Path) -> dict[str, str]:
    """The teacher's name, and the one that it has on the hub, if it comes from there."""
    on_hub = name_of(teacher)
    if on_hub is None:
        return {"teacher": teacher.name}
    return {"teacher": on_hub.partition("@")[0].split("/")[1], "teacher_on_hub": on_hub}


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of files, which may have gigabytes: one rank reads them. Collective."""
    return on_first_rank(lambda: {name: sha256_file(file) for name, file in files.items()})


def _with_names(settings: Any, paths: Collection[Path]) -> Any:
    """Settings that name files or folders without where these are, which means nothing
    elsewhere."""
    if isinstance(settings, dict):
        return {key: _with_names(value, paths) for key, value in settings.items()}
    is_path = isinstance(settings, str) and Path(settings) in paths
    return name_of(settings) or Path(settings).name if is_path else settings


def compatibility_of(
    config: RunConfig,
    architecture: Architecture,
    roles: Iterable[Role],
    frozen: Mapping[str, Frozen],
    index: ShardIndex | None,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What a resumed run must have in common with the one before, besides settings."""
    shape = None
    if index is not None:
        shape = {
            "sample": index.sample_shape,
            "classes": index.num_classes,
            "samples": index.samples,
            "shards": len(index.shards),
        }
    return {
        "architecture": dataclasses.asdict(dataclasses.replace(architecture, dropout=0.0)),
        "roles": {
            role.name: {"forced_norm": role.forced_norm, **_frozen(role, frozen)} for role in roles
        },
        "in_effect": _in_effect(config),
        "data_shape": shape,
        "teacher_sha256": provenance["teacher_sha256"],
        "files_sha256": provenance.get("files_sha256", {}),
        "guides_sha256": provenance.get("guides_sha256", {}),
    }


def _frozen(role: Role, frozen: Mapping[str, Frozen]) -> dict[str, Any]:
    """What of a role stays as it is, and of which file: nothing but that file has it."""
    if role.name not in frozen:
        return {}
    return {"freeze": sorted(set(role.freeze)), "frozen_from": frozen[role.name].sha256}


def _in_effect(config: RunConfig) -> dict[str, Any]:
    """The settings of the loss that must match, as they take effect.

    A method's settings tell them, see `register_objective`. Otherwise a loss may depend on which
    samples are in one micro-batch.
    """
    in_effect = getattr(config.objective, "in_effect", None)
    return {"micro_batch": config.micro_batch} if in_effect is None else in_effect(config)
