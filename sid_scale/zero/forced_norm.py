"""Forced weight normalisation under ZeRO (arXiv 2312.02696, Sec. 2.3).

EDM2 normalises each row of a weight (all that feeds one output) in place before it is used.
Under ZeRO the weights that the optimizer steps are float32 masters, cut without regard to
rows, so each rank sums the squares of its slice of every row and one small all-reduce, one
number a row, makes the norms whole. It happens right after the optimizer has stepped and
before DeepSpeed carries the masters to the forward weights: no second gather.
"""

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from sid_scale.zero.fragments import (
    Fragment,
    is_replicated,
    local_fragments,
    parameter_shapes,
)

EPSILON = 1e-4  # added to the magnitude that divides


class ForcedNorm:
    """Keeps the rows of the named parameters at a root-mean-square of one, step by step."""

    def __init__(self, engine: DeepSpeedEngine, names: Iterable[str]):
        """Collective from now on: every optimizer step of `engine` is followed by an all-reduce."""
        wanted = set(names)
        shapes = {n: s for n, s in parameter_shapes(engine).items() if n in wanted}
        begins = accumulate((shape[0] for shape in shapes.values()), initial=0)
        self._first_row = dict(zip(shapes, begins, strict=False))
        self._rows = sum(shape[0] for shape in shapes.values())
        self._fragments = [f for f in local_fragments(engine) if f.name in wanted]
        self._replicated = is_replicated(engine)
        self._device = engine.device
        engine.basic_optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Stage 3 steps its sub-groups one by one: normalise what has just been stepped.
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.normalise([f for f in self._fragments if id(f.flat) in stepped])

    @torch.no_grad()
    def normalise(self, fragments: list[Fragment]) -> None:
        """Normalises `fragments` in place. Collective at stage 1 and above."""
        square_sums = torch.zeros(self._rows, device=self._device)
        for f in fragments:
            square_sums[self._rows_of(f)] += row_square_sums(f.master, f.start, fan_in(f)).to(
                self._device
            )
        if not self._replicated:
            dist.all_reduce(square_sums)
        for f in fragments:
            rms = (square_sums[self._rows_of(f)] / fan_in(f)).sqrt().to(f.master.device)
            divide_rows_(f.master, f.start, fan_in(f), rms + EPSILON)

    def _rows_of(self, fragment: Fragment) -> slice:
        first = self._first_row[fragment.name] + fragment.start // fan_in(fragment)
        return slice(first, first + _rows_touched(fragment.numel, fragment.start, fan_in(fragment)))


@torch.no_grad()
def normalise_rows_(weight: Tensor) -> None:
    """Scales each row of a dense weight to a root-mean-square of one, in place (Eq. 66)."""
    norm = torch.linalg.vector_norm(
        weight, dim=tuple(range(1, weight.ndim)), keepdim=True, dtype=torch.float32
    )
    rms = torch.add(EPSILON, norm, alpha=math.sqrt(norm.numel() / weight.numel()))
    weight /= rms.to(weight.dtype)


def fan_in(fragment: Fragment) -> int:
    """Elements in a row of the fragment's parameter."""
    return fragment.shape[1:].numel()


def row_square_sums(piece: Tensor, start: int, row: int) -> Tensor:
    """Sums of squares of each row that `piece` touches, -> (rows touched,).

    `piece` (numel,) begins at element `start` of a flattened matrix with rows of `row`.
    """
    before = start % row
    after = -(before + len(piece)) % row
    return F.pad(piece, (before, after)).view(-1, row).square().sum(dim=1)


def divide_rows_(piece: Tensor, start: int, row: int, divisors: Tensor) -> None:
    """Divides each row that `piece` touches by its divisor, in place (see above)."""
    before = start % row
    piece /= divisors.repeat_interleave(row)[before : before + len(piece)]


def _rows_touched(numel: int, start: int, row: int) -> int:
    return -(-(start % row + numel) // row)
