"""The whole training state in one folder, written by every rank and read by any number.

Each rank writes the fragments that it owns (masters, Adam's moments, the average) under their
parameters' names with the place where they begin; rank 0 adds the counters and, last, a
manifest with sizes and checksums. The folder then gets its name by one rename: a checkpoint
is complete or absent. Reading looks up, for each fragment of the reader, the stretches that
cover it, so the number of ranks and the ZeRO stage may have changed.

Reading checks names and sizes; the checksums are for whoever doubts a disk. Nothing here can
carry code: safetensors and JSON.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.networks.checkpoints import sha256
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.fragments import (
    Fragment,
    is_replicated,
    local_fragments,
    parameter_shapes,
    publish_masters,
)

MANIFEST = "manifest.json"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingStateError(SidScaleError):
    """A checkpoint that cannot be written or used; the message says which and why."""


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds of the networks, by role."""

    engines: Mapping[str, DeepSpeedEngine]
    emas: Mapping[str, ShardedEMA]

    def stretches(self, role: str) -> Iterator[tuple[str, Fragment, Tensor]]:
        """(kind, fragment, this rank's values) of everything sharded in one network."""
        engine = self.engines[role]
        state = engine.basic_optimizer.state
        for fragment in local_fragments(engine):
            yield "master", fragment, fragment.master
            if fragment.flat in state:
                for moment in MOMENTS:
                    yield moment, fragment, fragment.of(state[fragment.flat][moment])
        if role in self.emas:
            ema = self.emas[role]
            for fragment, value in zip(ema.fragments, ema.values, strict=True):
                yield "ema", fragment, value


def save_checkpoint(folder: Path, state: TrainingState, counters: dict[str, Any]) -> None:
    """Writes a checkpoint under `folder` (which must not exist). Collective.

    `counters` is JSON: images seen, configuration.
    """
    rank = dist.get_rank()
    partial = folder.with_name(f".{folder.name}.partial")
    if rank == 0:
        for left_over in folder.parent.glob(".*.partial"):
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)
    dist.barrier()
    _write_rank(partial / _rank_file(rank), state)
    written: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(written, _describe(partial / _rank_file(rank)))
    if rank == 0:
        steps = {role: _adam_step(engine) for role, engine in state.engines.items()}
        (partial / STATE).write_text(json.dumps({"adam_steps": steps, **counters}, indent=2))
        manifest = dict([*written, _describe(partial / STATE)])
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2))
        os.replace(partial, folder)
    dist.barrier()


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder of them, or None."""
    return max(_complete(folder), key=lambda p: int(p.name), default=None)


def keep_newest(folder: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints. For one rank to call."""
    for old in sorted(_complete(folder), key=lambda p: int(p.name))[:-keep]:
        shutil.rmtree(old)


def read_counters(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint, after its files' sizes have been checked.

    Raises:
        TrainingStateError: no checkpoint, or a file of it missing or of another size.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, entry in manifest.items():
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                raise TrainingStateError(
                    f"checkpoint {folder}: {name} has {size} bytes instead of {entry['bytes']}; "
                    "remove the folder to resume from the one before it"
                )
        return json.loads((folder / STATE).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainingStateError(
            f"checkpoint {folder} is incomplete or damaged ({error}); "
            "remove the folder to resume from the one before it"
        ) from error


def load_checkpoint(folder: Path, state: TrainingState) -> dict[str, Any]:
    """Restores networks, optimizers and averages; returns the counters. Collective.

    Raises:
        TrainingStateError: a file is missing or damaged, or holds other networks.
    """
    counters = read_counters(folder)
    with ExitStack() as stack:
        saved = _Saved(folder, stack)
        for role, engine in state.engines.items():
            _check_shapes(folder, saved, role, engine)
            step = counters["adam_steps"][role]
            if step is not None:
                _prepare_adam(engine, step)
            for kind, fragment, values in state.stretches(role):
                saved.fill(values, f"{role}/{kind}/{fragment.name}", fragment.start)
            publish_masters(engine)
    return counters


class _Saved:
    """The stretches that all ranks wrote, found by name."""

    def __init__(self, folder: Path, stack: ExitStack):
        self._folder = folder
        self._places: dict[str, list[tuple[int, Any, str]]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise TrainingStateError(f"checkpoint {folder}: {path.name}: {error}") from error
            for key in file.keys():  # noqa: SIM118 (no mapping)
                name, _, start = key.rpartition("@")
                self._places.setdefault(name, []).append((int(start), file, key))

    def names(self, prefix: str) -> set[str]:
        return {name[len(prefix) :] for name in self._places if name.startswith(prefix)}

    def fill(self, values: Tensor, name: str, start: int) -> None:
        """Copies elements [start, start + numel) of `name` into `values`."""
        filled = 0
        for begin, file, key in self._places.get(name, []):
            stretch = file.get_slice(key)
            end = begin + stretch.get_shape()[0]
            low, high = max(start, begin), min(start + len(values), end)
            if low < high:
                values[low - start : high - start].copy_(stretch[low - begin : high - begin])
                filled += high - low
        if filled != len(values):
            raise TrainingStateError(
                f"checkpoint {self._folder}: {name} lacks {len(values) - filled} elements; "
                "it was written for another network, or a rank's file is missing"
            )


def _complete(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*") if p.name.isdigit() and (p / MANIFEST).is_file()]


def _describe(file: Path) -> tuple[str, dict[str, Any]]:
    """A file's entry in the manifest."""
    return file.name, {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _check_shapes(folder: Path, saved: _Saved, role: str, engine: DeepSpeedEngine) -> None:
    expected, found = set(parameter_shapes(engine)), saved.names(f"{role}/master/")
    if expected != found:
        odd = sorted(expected ^ found)[:4]
        raise TrainingStateError(
            f"checkpoint {folder} holds another {role}: the two differ in {', '.join(odd)} ..."
        )


def _write_rank(path: Path, state: TrainingState) -> None:
    tensors = {}
    for role, engine in state.engines.items():
        if is_replicated(engine) and dist.get_rank() != 0:
            continue  # all ranks hold the same: one copy is enough
        for kind, fragment, values in state.stretches(role):
            key = f"{role}/{kind}/{fragment.name}@{fragment.start}"
            tensors[key] = values.to("cpu", copy=True).contiguous()
    save_file(tensors, path)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}-of-{dist.get_world_size():05d}.safetensors"


def _adam_step(engine: DeepSpeedEngine) -> int | None:
    """Adam's step count; None before the first update (then there are no moments either)."""
    steps = {int(s["step"]) for s in engine.basic_optimizer.state.values() if "step" in s}
    return max(steps, default=None)


def _prepare_adam(engine: DeepSpeedEngine, step: int) -> None:
    """Creates Adam's state as `step` updates leave it, moments still zero."""
    optimizer = engine.basic_optimizer
    for flat in {id(f.flat): f.flat for f in local_fragments(engine)}.values():
        count: Tensor | int = step
        if isinstance(optimizer, torch.optim.Adam):  # DeepSpeed's own counts in plain integers
            fused = optimizer.param_groups[0]["fused"]
            count = torch.tensor(float(step), device=flat.device if fused else "cpu")
        moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        optimizer.state[flat] = {"step": count, **moments}
