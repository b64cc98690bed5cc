"""Masters and the weights that the forward pass reads, where the two differ (arXiv 2312.02696).

The optimizer steps float32 masters m. DeepSpeed carries them to the forward weights, in the compute
dtype, after each step. EDM2's forward pass reads some parameters with rows (all that feeds one
output) of unit magnitude, times a constant s:

    w = s m / (r + eps),    r = |m| / sqrt(k),    k elements in a row          (Eqs. 47 and 66)

That changes once an update, so it is computed once an update, between the optimizer's step and
DeepSpeed's copy. The chain rule through it is linear in the gradient g of w:

    dL/dm = s / (r + eps) (g - m (m . g) / (k r (r + eps)))

It is therefore applied once, to the gradient that is summed over micro-batches and ranks. Under
ZeRO each rank holds fragments cut without regard to rows: it sums over its slice of every row, and
one small all-reduce, one number a row, makes the sums whole. Forced weight normalisation (Sec. 2.3)
divides the masters themselves by (r + eps) after each step, and r is then summed anew.

The norm of the gradient and its clipping are of dL/dm, after the chain rule.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from sid_scale.zero.fragments import (
    Fragment,
    carry_masters,
    is_replicated,
    local_fragments,
    parameter_shapes,
    take_gradients,
)

EPSILON = 1e-4  # added to the magnitude that divides
TINY = torch.finfo(torch.float32).tiny


class ForwardWeights:
    """Keeps one engine's forward weights to its masters, step by step."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        scales: Mapping[str, float],
        *,
        forced: bool = False,
        clipping: float = 0.0,
        clip_value: float | None = None,
    ):
        """From now on optimizer steps of `engine` are collective.

        Args:
            scales: parameters that are read with rows of unit magnitude, and the constant s.
            forced: whether the rows of the masters are normalised after each step, too.
            clipping: the largest norm of the gradient; 0: any.
            clip_value: the largest magnitude of each of its elements, after that; None: any.
        """
        self._engine, self._forced = engine, forced
        self._clipping, self._clip_value = clipping, clip_value
        shapes = {n: s for n, s in parameter_shapes(engine).items() if n in scales}
        begins = accumulate((shape[0] for shape in shapes.values()), initial=0)
        self._first_row = dict(zip(shapes, begins, strict=False))
        fragments = local_fragments(engine)
        self._flats = list({id(f.flat): f.flat for f in fragments}.values())
        self._fragments = [f for f in fragments if f.name in scales]
        self._device = self._flats[0].device if self._flats else engine.device
        lengths = [s[1:].numel() for s in shapes.values() for _ in range(s[0])]
        self._row_length = torch.tensor(lengths, dtype=torch.float32, device=self._device)  # k
        factors = [scales[n] for n, s in shapes.items() for _ in range(s[0])]
        self._row_scale = torch.tensor(factors, dtype=torch.float32, device=self._device)  # s
        self._rms = torch.ones_like(self._row_length)  # r, of the masters
        self._hidden: list[Tensor] = []  # masters, while their flats show the forward weights
        self.grad_norm = torch.tensor(float("nan"))  # of the last step, before clipping
        engine.basic_optimizer.register_step_pre_hook(self._before_step)
        engine.basic_optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def publish(self) -> None:
        """Makes the forward weights anew, of masters that were changed from outside. Collective."""
        self._measure_rows()
        try:
            self._show_forward_weights()
            carry_masters(self._engine)
        finally:
            self.show_masters()

    @torch.no_grad()
    def normalise_masters(self) -> None:
        """Normalises the rows of the masters, if that is forced. Collective."""
        self._measure_rows()
        if self._forced:
            self._divide_rows()
            # The forward weights are a function of the masters alone, bit for bit: a resumed run,
            # or one that has looked at its average, makes them of no others.
            self._measure_rows()

    def show_masters(self) -> None:
        """Ends what a step of the optimizer begins: the flat tensors are the masters again."""
        for flat, masters in zip(self._flats, self._hidden, strict=False):
            flat.data = masters
        self._hidden = []

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The chain rule, the gradient's norm, clipping."""
        if is_replicated(self._engine):
            take_gradients(self._engine)
        held = [f for f in self._fragments if f.flat.grad is not None]
        dots = torch.zeros_like(self._row_length)  # m . g
        for f in held:
            masters, gradients = self._rows(f, f.master), self._rows(f, f.gradient)
            for (rows, m), (_, g) in zip(masters, gradients, strict=True):
                dots[rows] += (m * g).sum(dim=1)
        magnitude = self._rms + EPSILON
        along = self._over_ranks(dots) / (self._row_length * self._rms.clamp(min=TINY) * magnitude)
        factor = self._row_scale * magnitude.reciprocal()
        for f in held:
            masters, gradients = self._rows(f, f.master), self._rows(f, f.gradient)
            for (rows, m), (_, g) in zip(masters, gradients, strict=True):
                g.addcmul_(m, along[rows, None], value=-1).mul_(factor[rows, None])
        self._clip([flat.grad for flat in self._flats if flat.grad is not None])

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Lets DeepSpeed, which copies the flat tensors next, find the forward weights there."""
        self.normalise_masters()
        self._show_forward_weights()
        if is_replicated(self._engine):  # DeepSpeed copies nothing
            carry_masters(self._engine)
            self.show_masters()
            for flat in self._flats:
                flat.grad = None  # DeepSpeed gives the parameters' back

    def _show_forward_weights(self) -> None:
        self._hidden = [flat.data for flat in self._flats]
        for flat in self._flats:
            flat.data = flat.data.clone()
        factor = self._row_scale * (self._rms + EPSILON).reciprocal()
        for f in self._fragments:
            for rows, weight in self._rows(f, f.master):
                weight.mul_(factor[rows, None])

    def _measure_rows(self) -> None:
        squares = torch.zeros_like(self._row_length)
        for f in self._fragments:
            for rows, weight in self._rows(f, f.master):
                squares[rows] += torch.linalg.vector_norm(weight, dim=1).square()
        self._rms = (self._over_ranks(squares) / self._row_length).sqrt()

    def _divide_rows(self) -> None:
        magnitude = self._rms + EPSILON
        for f in self._fragments:
            for rows, weight in self._rows(f, f.master):
                weight.div_(magnitude[rows, None])

    def _clip(self, gradients: list[Tensor]) -> None:
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else self._rms.new_zeros(1)
        self.grad_norm = self._over_ranks(norms.square().sum()).sqrt()
        if self._clipping:
            share = (self._clipping / (self.grad_norm + TINY)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        if self._clip_value is not None:
            for gradient in gradients:
                gradient.clamp_(-self._clip_value, self._clip_value)

    def _rows(self, f: Fragment, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """`row_pieces` of a fragment, rows counted over all parameters."""
        for rows, piece in row_pieces(values, f.start, f.shape[1:].numel()):
            first = self._first_row[f.name]
            yield slice(first + rows.start, first + rows.stop), piece

    def _over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over ranks of what each has for its fragments."""
        if is_replicated(self._engine):
            return sums
        total = sums.to(self._engine.device)
        dist.all_reduce(total)
        return total.to(self._device)


def row_pieces(values: Tensor, start: int, length: int) -> Iterator[tuple[slice, Tensor]]:
    """A slice of a flattened matrix, row by row: numbers of rows and a view of them, (rows, n).

    Whole rows come together; the first and the last may be there in part.

    Args:
        values: elements from `start` on, (numel,).
        length: of a row.
    """
    at, end = 0, len(values)
    while at < end:
        row, within = divmod(start + at, length)
        count = 0 if within else (end - at) // length
        size = count * length if count else min(length - within, end - at)
        yield slice(row, row + max(count, 1)), values[at : at + size].view(max(count, 1), -1)
        at += size
