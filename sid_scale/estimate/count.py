"""Counts what a computation does: FLOP, bytes that kernels move, kernels, bytes alive.

A `Counter` sees every operation on tensors of one device while it is active. On the device "meta"
nothing is computed: a network of any size is counted in seconds.

- A kernel is an operation that reads or writes memory: neither a view nor an allocation. The two
  halves of a convolution's backward pass are two.
- It reads its inputs and writes its outputs once. What fits a cache is not told apart.
- FLOP are those of `torch.utils.flop_counter`: 2 for a multiplication and its addition, in
  convolutions, matrix products and attention alone.
- Alive is what was allocated and is still referred to, by autograd too.

On "meta" PyTorch would run attention and dropout as their mathematical parts. `Counter` takes the
operations that CUDA takes (`_as_on_cuda`).
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten

CONVOLUTION, MATMUL, ATTENTION = "convolution", "matrix product", "attention"
ELEMENTWISE, COPY = "elementwise, reductions", "copy"
KINDS = (CONVOLUTION, MATMUL, ATTENTION, ELEMENTWISE, COPY)

_KINDS = {
    aten.convolution: CONVOLUTION,
    aten.convolution_backward: CONVOLUTION,
    aten.mm: MATMUL,
    aten.addmm: MATMUL,
    aten.bmm: MATMUL,
    aten.baddbmm: MATMUL,
    aten._scaled_dot_product_flash_attention: ATTENTION,
    aten._scaled_dot_product_flash_attention_backward: ATTENTION,
    aten._scaled_dot_product_flash_attention_for_cpu: ATTENTION,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: ATTENTION,
    aten._scaled_dot_product_efficient_attention: ATTENTION,
    aten._scaled_dot_product_efficient_attention_backward: ATTENTION,
    aten._to_copy: COPY,
    aten.copy_: COPY,
    aten.clone: COPY,
    aten.cat: COPY,
}
# Operations that launch nothing: allocations, and views that the schema does not mark as such.
_NO_KERNEL = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.set_,
    aten.resize_,
}
# Operations that do not read what they write to.
_OVERWRITING = {aten.copy_, aten.fill_, aten.zero_, aten.bernoulli_, aten.normal_, aten.uniform_}


class Phase(NamedTuple):
    """A part of a computation."""

    update: str  # whose optimizer step it belongs to
    part: str


NOWHERE = Phase("", "")


@dataclass
class Work:
    """What was done in a phase, by operations of a kind."""

    flop: float = 0.0
    nbytes: float = 0.0  # read and written
    kernels: float = 0.0
    float32_flop: float = 0.0  # those of `flop` whose result is float32

    def add(self, other: "Work", times: float = 1.0) -> None:
        self.flop += times * other.flop
        self.float32_flop += times * other.float32_flop
        self.nbytes += times * other.nbytes
        self.kernels += times * other.kernels


class Counter:
    """Counts on one device while `active()`; see the module's docstring."""

    def __init__(self, device: str, *, given: Iterable[Tensor] = ()):
        """`given` are tensors that are not counted as alive: weights, above all."""
        self.work: dict[tuple[Phase, str], Work] = defaultdict(Work)
        self.peak: dict[Phase, int] = {}  # most bytes alive at once
        self.alive = 0  # bytes, now
        self.phase = NOWHERE
        self._device = device
        self._known = {id(t.untyped_storage()): t.untyped_storage() for t in given}
        self._watched: dict[int, Any] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._device == "meta":
                stack.enter_context(_as_on_cuda())
            stack.enter_context(_Dispatch(self))
            yield

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """Inside, what is done belongs to `phase`."""
        before, self.phase = self.phase, phase
        self._mark()
        try:
            yield
        finally:
            self.phase = before

    def saw(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Takes an operation into account."""
        written = self._tensors(out)
        if not written or func.is_view:
            return
        for tensor in written:
            self._keep(tensor.untyped_storage())
        packet = func.overloadpacket
        if packet in _NO_KERNEL or func.namespace == "c10d":  # what ranks send is told elsewhere
            return
        work = self.work[self.phase, _KINDS.get(packet, ELEMENTWISE)]
        if packet in flop_registry:
            flop = flop_registry[packet](*args, **kwargs, out_val=out)
            work.flop += flop
            work.float32_flop += flop if written[0].dtype == torch.float32 else 0
        read = self._tensors((args[1:] if packet in _OVERWRITING else args, kwargs))
        work.nbytes += sum(map(_bytes_of, (*read, *written)))
        work.kernels += 2 if packet is aten.convolution_backward and len(written) > 1 else 1

    def _tensors(self, tree: Any) -> list[Tensor]:
        leaves = tree_leaves(tree)
        return [x for x in leaves if isinstance(x, Tensor) and x.device.type == self._device]

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = id(storage), storage.nbytes()
        if key in self._known or key in self._watched or not nbytes:
            return

        def freed(_: Any) -> None:
            del self._watched[key]
            self.alive -= nbytes

        # The Python object of a storage lives as long as the storage, whoever refers to it.
        self._watched[key] = weakref.ref(storage, freed)
        self.alive += nbytes
        self._mark()

    def _mark(self) -> None:
        self.peak[self.phase] = max(self.peak.get(self.phase, 0), self.alive)


def _bytes_of(tensor: Tensor) -> int:
    """What reading all of a tensor moves; an expanded one is read once."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


class _Dispatch(TorchDispatchMode):
    def __init__(self, counter: Counter):
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._counter.saw(func, args, kwargs, out)
        return out


# --- what CUDA has one kernel for ------------------------------------------------------------

_attention_in_parts, _dropout_in_parts = F.scaled_dot_product_attention, F.dropout


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Inside, attention and dropout on "meta" are the operations that CUDA takes.

    A TorchFunctionMode would not do: it is suspended during a backward pass, which may run forwards
    again.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(patch.object(F, "dropout", _dropout))
        yield


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """One kernel that keeps a mask of one byte an element."""
    if not x.is_meta or not training or not 0 < p < 1 or inplace:
        return _dropout_in_parts(x, p, training, inplace)
    return torch.native_dropout(x, p, training)[0]


def _attention(q: Tensor, k: Tensor, v: Tensor, *more: Any, **other: Any) -> Tensor:
    """Flash attention in half precision, memory-efficient attention in float32.

    Both want the last dimension dense; otherwise CUDA takes the mathematical parts, as it does
    where they are asked for.
    """
    dense = all(t.is_meta and t.stride(-1) == 1 for t in (q, k, v))
    if more or other or not dense or not torch.backends.cuda.flash_sdp_enabled():
        return _attention_in_parts(q, k, v, *more, **other)
    if q.dtype == torch.float32:
        needs_sum = torch.is_grad_enabled() and q.requires_grad
        found = aten._scaled_dot_product_efficient_attention(q, k, v, None, needs_sum)
    else:
        found = aten._scaled_dot_product_flash_attention(q, k, v)
    out: Tensor = found[0]
    return out
