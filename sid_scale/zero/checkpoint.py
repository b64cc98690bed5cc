"""The whole training state as this rank's share of it, to be written and to be read back.

Each rank holds fragments (masters, Adam's moments, the average); `host_files` lays them out as
the files that saved.py describes, `load_checkpoint` fills them from a checkpoint of any number
of ranks and any ZeRO stage. What is loaded is what was saved, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import ShardedNetwork
from sid_scale.zero.fragments import (
    Fragment,
    is_replicated,
    local_fragments,
    parameter_shapes,
    stage_of,
)
from sid_scale.zero.power_ema import width_name
from sid_scale.zero.saved import (
    BUFFERS,
    Manifest,
    Slices,
    TrainingStateError,
    buffers_file,
    opened,
    rank_file,
    read_manifest,
    read_state,
)

MASTER, EMA = "master", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of float16


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds of the networks, by role."""

    networks: Mapping[str, ShardedNetwork]
    emas: Mapping[str, ShardedEMA]
    # By role, those of other widths that are kept beside that one: relative width -> average.
    other_emas: Mapping[str, Mapping[float, ShardedEMA]] = field(default_factory=dict)

    def share(self, role: str) -> dict[str, list[tuple[Fragment, Tensor]]]:
        """This rank's fragments of one network and their values, by kind."""
        engine = self.networks[role].engine
        fragments, adam = local_fragments(engine), engine.basic_optimizer.state
        stepped = [f for f in fragments if f.flat in adam]  # none before the first update
        found = {MASTER: [(f, f.master) for f in fragments]}
        found |= {moment: [(f, f.of(adam[f.flat][moment])) for f in stepped] for moment in MOMENTS}
        averages = {EMA: self.emas[role]} if role in self.emas else {}
        for width, ema in self.other_emas.get(role, {}).items():
            averages[f"{EMA}_{width_name(width)}"] = ema
        for kind, ema in averages.items():
            found[kind] = list(zip(ema.fragments, ema.values, strict=True))
        return found


def host_files(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """What this rank writes: file name -> tensors, views of the state where it is on the host.

    At stage 0 all ranks hold the same, and rank 0 alone writes.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    files: dict[str, dict[str, Tensor]] = {}
    for role, network in state.networks.items():
        engine = network.engine
        if rank == 0:
            buffers = engine.module.named_buffers()
            files[buffers_file(role)] = {f"{name}@0": b.flatten() for name, b in buffers}
        if rank == 0 or not is_replicated(engine):
            for kind, held in state.share(role).items():
                tensors = {f"{f.name}@{f.start}": values for f, values in held}
                files[rank_file(role, kind, rank, world_size)] = tensors
    return files


def describe_state(state: TrainingState) -> dict[str, Any]:
    """How the state is cut, and what the optimizers count (Adam's steps; in float16 the loss
    scale), by role: JSON, for `load_checkpoint`."""
    optimizers = {
        role: {"adam_step": _adam_step(n.engine), "loss_scale": _loss_scale(n.engine)}
        for role, n in state.networks.items()
    }
    return {"layout": _layout(state), "optimizers": optimizers}


@torch.no_grad()
def load_checkpoint(folder: Path, state: TrainingState) -> dict[str, Any]:
    """Restores networks, optimizers and averages; returns the counters. Collective.

    Raises:
        TrainingStateError: a file is missing or damaged, or holds other networks.
    """
    manifest, counters = read_manifest(folder), read_state(folder)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    same_layout = counters["layout"] == _layout(state)
    for role, network in state.networks.items():
        engine = network.engine
        counted = counters["optimizers"][role]
        if counted["adam_step"] is not None:
            _prepare_adam(engine, counted["adam_step"])
        for kind, held in state.share(role).items():
            files = manifest.of(role, kind)
            if same_layout and not is_replicated(engine):
                files = [rank_file(role, kind, rank, world_size)]  # holds just what we hold
            with opened(folder, files) as slices:
                if kind == MASTER and not same_layout:
                    _check_sizes(folder, role, slices, engine)
                for fragment, values in held:
                    slices.fill(values, fragment.name, fragment.start)
        _load_buffers(manifest, role, engine)
        network.forward_weights.publish()
        _set_loss_scale(engine, counted["loss_scale"])
    return counters


def _load_buffers(manifest: Manifest, role: str, engine: DeepSpeedEngine) -> None:
    with opened(manifest.folder, manifest.of(role, BUFFERS)) as slices:
        for name, buffer in engine.module.named_buffers():
            values = torch.empty(buffer.numel(), dtype=buffer.dtype)
            slices.fill(values, name, 0)
            buffer.copy_(values.view(buffer.shape))


def _check_sizes(folder: Path, role: str, found: Slices, engine: DeepSpeedEngine) -> None:
    expected = {name: shape.numel() for name, shape in parameter_shapes(engine).items()}
    odd = sorted({name for name, _ in expected.items() ^ found.sizes().items()})
    if odd:
        more = " ..." if len(odd) > 4 else ""
        raise TrainingStateError(
            f"checkpoint {folder} holds another {role}: the two differ in "
            f"{', '.join(odd[:4])}{more}"
        )


def _layout(state: TrainingState) -> dict[str, Any]:
    stages = {role: stage_of(n.engine) for role, n in state.networks.items()}
    return {"ranks": dist.get_world_size(), "stages": stages}


def _adam_step(engine: DeepSpeedEngine) -> int | None:
    """Adam's step count; None before the first update (then there are no moments either)."""
    steps = {int(s["step"]) for s in engine.basic_optimizer.state.values() if "step" in s}
    return max(steps, default=None)


def _prepare_adam(engine: DeepSpeedEngine, step: int) -> None:
    """Creates Adam's state as `step` updates leave it, moments still zero."""
    optimizer = engine.basic_optimizer
    for flat in {id(f.flat): f.flat for f in local_fragments(engine)}.values():
        count = torch.tensor(float(step), device=flat.device)
        moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        optimizer.state[flat] = {"step": count, **moments}


def _loss_scale(engine: DeepSpeedEngine) -> dict[str, float] | None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return None
    return {name: getattr(scaler, name) for name in LOSS_SCALE}


def _set_loss_scale(engine: DeepSpeedEngine, saved: dict[str, float] | None) -> None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if saved is not None and getattr(scaler, "dynamic", False):
        for name, value in saved.items():
            setattr(scaler, name, value)
