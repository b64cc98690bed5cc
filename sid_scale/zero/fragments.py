"""Which slice of which parameter this rank owns, the same view at every ZeRO stage.

What DeepSpeed's optimizer steps are not the module's parameters but flat float32 tensors,
cut into one part a rank. A `Fragment` is one parameter's slice of such a tensor. All that acts
on the real weights (normalisation, EMA, checkpoints) acts on fragments, and `carry_masters`
copies the result to the weights that the forward pass reads.

    stage 0     one flat tensor a parameter; every rank owns all of every one
    stage 1, 2  one flat tensor; a parameter may straddle two ranks
    stage 3     every parameter is cut into equal parts; the last is padded
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor, nn

from sid_scale.zero.frozen import trained_parameters


@dataclass(frozen=True)
class Fragment:
    """This rank's slice of one parameter.

    `flat` is the tensor that the base optimizer holds (and keys its state by); the slice
    begins there at `offset` and covers elements [start, start + numel) of the parameter.
    """

    name: str
    shape: torch.Size  # of the whole parameter
    start: int
    numel: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The slice of a tensor laid out like `flat`: a view, (numel,)."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)

    @property
    def master(self) -> Tensor:
        """The float32 weights that the optimizer steps: a view, (numel,)."""
        return self.of(self.flat)

    @property
    def gradient(self) -> Tensor:
        """The gradient that the optimizer is about to use, float32: a view, (numel,)."""
        assert self.flat.grad is not None
        return self.of(self.flat.grad)


def stage_of(engine: DeepSpeedEngine) -> int:
    """ZeRO stage, 0 to 3."""
    return int(engine.zero_optimization_stage())


def is_replicated(engine: DeepSpeedEngine) -> bool:
    """Whether every rank owns every element (stage 0) rather than a share of its own."""
    return stage_of(engine) == 0


def local_fragments(engine: DeepSpeedEngine) -> list[Fragment]:
    """This rank's fragments, in the order of the module's parameters.

    At stage 1 and above the ranks' fragments are disjoint and together cover every parameter that
    is trained.
    """
    named = trained_parameters(engine.module)
    if is_replicated(engine):
        masters = (flat for _, flat in _replicated_masters(engine))
        return [
            Fragment(name, p.shape, 0, p.numel(), flat, 0)
            for (name, p), flat in zip(named, masters, strict=True)
        ]
    find = {1: _flat_partition, 2: _flat_partition, 3: _equal_parts}[stage_of(engine)]
    found = (find(engine, name, p) for name, p in named)
    return [fragment for fragment in found if fragment is not None]


def parameter_shapes(engine: DeepSpeedEngine) -> dict[str, torch.Size]:
    """Full shape of every trained parameter, whatever this rank holds of it."""
    return {
        name: torch.Size(getattr(p, "ds_shape", p.shape))
        for name, p in trained_parameters(engine.module)
    }


@torch.no_grad()
def set_masters(engine: DeepSpeedEngine, parameters: Mapping[str, Tensor]) -> None:
    """Gives the masters the values of full parameters, of any dtype.

    DeepSpeed makes its float32 masters from weights that it has rounded to half precision.
    """
    for f in local_fragments(engine):
        f.master.copy_(parameters[f.name].flatten()[f.start : f.start + f.numel])


def carry_masters(engine: DeepSpeedEngine) -> None:
    """Copies what the flat tensors hold to the weights that the forward pass reads.

    Collective at stages 1 to 3 (one all-gather, or that of stage 3's persistent parameters).
    """
    optimizer, stage = engine.optimizer, stage_of(engine)
    if stage == 0:
        for p, flat in _replicated_masters(engine):
            p.data.copy_(flat)
    elif stage in (1, 2):
        optimizer.update_lp_params()
    else:
        optimizer._partition_all_parameters()  # drop gathered copies of the old values
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer._post_step(set())
        # Gathers run on a stream of their own, which does not wait for the one of these copies.
        # Where no parameter is persistent, nothing else lets them be done first.
        get_accelerator().synchronize()


def take_gradients(engine: DeepSpeedEngine) -> None:
    """At stage 0, gives the masters the gradients of the parameters, as DeepSpeed does at others.

    A master without a gradient, and its Adam state, stay as they are.
    """
    for p, flat in _replicated_masters(engine):
        flat.grad = None if p.grad is None else p.grad.float()


@torch.no_grad()
def forget_gradients(engine: DeepSpeedEngine) -> None:
    """At stages 1 to 3, ends an update for which all gradients have been used, or skipped.

    Stage 3 and an offloaded optimizer write new gradients over old ones, so that a parameter which
    gets none in an update would be stepped by its last one again. Stage 2 adds up for an offloaded
    optimizer, after a skipped update too.
    """
    optimizer, stage = engine.optimizer, stage_of(engine)
    if stage == 0:
        return
    if stage == 3:
        optimizer.grad_partitions_flat_buffer.zero_()
        flats = optimizer.fp32_partitioned_groups_flat
    else:
        optimizer.averaged_gradients.update(dict.fromkeys(optimizer.averaged_gradients))
        flats = optimizer.single_partition_of_fp32_groups
    for flat in flats:
        if flat.grad is not None:
            flat.grad.zero_()


def gather_parameters(
    engine: DeepSpeedEngine, fragments: Sequence[Fragment], values: Sequence[Tensor]
) -> dict[str, Tensor] | None:
    """Puts fragments of all ranks together: the full trained parameters on rank 0 (CPU), None
    elsewhere.

    `values[i]` (numel,) is laid out like `fragments[i]`. Collective at stage 1 and above: one
    reduction a parameter, so that no rank ever holds more than one of them on its device.
    """
    mine = {fragment.name: (fragment, value) for fragment, value in zip(fragments, values)}
    rank, full_state = dist.get_rank(), {}
    for name, shape in parameter_shapes(engine).items():
        full = torch.zeros(shape.numel(), device=engine.device)
        if name in mine:
            fragment, value = mine[name]
            full.narrow(0, fragment.start, fragment.numel).copy_(value)
        if not is_replicated(engine):
            dist.reduce(full, dst=0)  # every element is owned once: the sum is the whole
        if rank == 0:
            full_state[name] = full.cpu().view(shape)
    return full_state if rank == 0 else None


def _replicated_masters(engine: DeepSpeedEngine) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """At stage 0, each trained parameter and its master."""
    masters = engine.basic_optimizer.param_groups[0]["params"]
    return zip((p for _, p in trained_parameters(engine.module)), masters, strict=True)


def _flat_partition(engine: DeepSpeedEngine, name: str, p: Any) -> Fragment | None:
    mapping = getattr(p, "_hp_mapping", None)  # None where another rank owns all of it
    if mapping is None:
        return None
    address = mapping.lp_fragment_address
    flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    offset = mapping.hp_fragment_address.start
    return Fragment(name, p.shape, address.start, address.numel, flat, offset)


def _equal_parts(engine: DeepSpeedEngine, name: str, p: Any) -> Fragment | None:
    optimizer = engine.optimizer
    group, offset, part = optimizer.grad_position[optimizer.get_param_id(p)]
    start = dist.get_rank() * part
    numel = min(part, p.ds_numel - start)
    if numel <= 0:
        return None
    flat = optimizer.fp32_partitioned_groups_flat[group]
    return Fragment(name, torch.Size(p.ds_shape), start, numel, flat, offset)
