"""Operations are counted as a GPU runs them: FLOP, bytes, kernels, bytes alive."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sid_scale.estimate.count import (
    ATTENTION,
    CONVOLUTION,
    COPY,
    ELEMENTWISE,
    MATMUL,
    Counter,
    Phase,
    Work,
)

A, B = Phase("generator", "a"), Phase("generator", "b")


def meta(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def by_kind(counter: Counter) -> dict[str, tuple[float, float, float]]:
    return {kind: (w.flop, w.nbytes, w.kernels) for (_, kind), w in counter.work.items()}


def test_every_kind_has_its_flop_bytes_and_kernels():
    counter = Counter("meta")
    x, weight, image, kernel = meta(8, 16), meta(16, 4), meta(2, 3, 8, 8), meta(5, 3, 3, 3)
    with counter.active():
        x @ weight
        F.conv2d(image, kernel, padding=1)
        x + 1
        x.to(torch.bfloat16)
    assert by_kind(counter) == {
        MATMUL: (2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4), 1),
        CONVOLUTION: (2 * (2 * 5 * 8 * 8) * 3 * 9, 4 * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 64), 1),
        ELEMENTWISE: (0, 2 * 4 * 8 * 16, 1),
        COPY: (0, (4 + 2) * 8 * 16, 1),
    }


def test_views_and_allocations_move_nothing_and_an_expanded_tensor_is_read_once():
    counter = Counter("meta")
    x = meta(4, 8)
    with counter.active():
        x.view(8, 4).t()[1:].detach().expand(5, 3, 8)
        torch.empty_like(x)
    assert not counter.work
    with counter.active():
        x[:1].expand(1000, 8) + 1
    assert by_kind(counter) == {ELEMENTWISE: (0, 4 * (4 * 8 + 1000 * 8), 1)}


def test_what_is_overwritten_is_not_read():
    counter = Counter("meta")
    x, y = meta(100), meta(100)
    with counter.active():
        x.copy_(y)
        x.add_(y)
    assert by_kind(counter) == {COPY: (0, 800, 1), ELEMENTWISE: (0, 1200, 1)}


def test_both_halves_of_a_convolutions_backward_pass_are_kernels():
    for trained, kernels in ((True, 2), (False, 1)):
        counter = Counter("meta")
        image, kernel = meta(2, 3, 8, 8, grad=True), meta(5, 3, 3, 3, grad=trained)
        y = F.conv2d(image, kernel)
        with counter.active():
            torch.autograd.grad(y, [image, kernel] if trained else [image], torch.ones_like(y))
        assert by_kind(counter)[CONVOLUTION][2] == kernels


def test_alive_is_what_is_referred_to_by_autograd_too():
    counter = Counter("meta")
    x = meta(1000, grad=True)
    with counter.active():
        with counter.within(A):
            y = x.exp().sin()  # autograd keeps what exp has made, and what sin has made is y
        assert counter.alive == 8000
        with counter.within(B):
            z = y.sum()
            del y
            assert counter.alive == 4004
            del z
    assert counter.alive == 0
    assert counter.peak == {A: 8000, B: 8004}


def test_what_was_given_is_not_counted_as_alive():
    weight = meta(1000)
    counter = Counter("meta", given=[weight])
    with counter.active():
        weight.add_(1)
        weight.view(10, 100).add_(1)
    assert counter.alive == 0


def test_what_happens_on_other_devices_is_not_counted():
    counter = Counter("meta")
    with counter.active():
        torch.randn(10).exp()
    assert not counter.work
    assert counter.alive == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_is_one_fused_kernel_where_cuda_has_one(dtype: torch.dtype):
    q, k, v = (meta(2, 4, 64, 32, dtype=dtype, grad=True) for _ in range(3))
    counter = Counter("meta")
    with counter.active():
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    work = counter.work[counter.phase, ATTENTION]
    assert work.kernels == 2  # forward and backward
    assert work.flop == (2 + 5) * 2 * (2 * 4) * 64 * 64 * 32
    assert MATMUL not in by_kind(counter)


def test_attention_falls_apart_where_the_last_dimension_is_not_dense():
    q, k, v = (meta(2, 4, 32, 64, dtype=torch.bfloat16).transpose(2, 3) for _ in range(3))
    counter = Counter("meta")
    with counter.active():
        F.scaled_dot_product_attention(q, k, v)
    assert by_kind(counter)[MATMUL][2] == 2
    assert ATTENTION not in by_kind(counter)


def test_dropout_keeps_a_byte_an_element():
    x = meta(1000, dtype=torch.bfloat16, grad=True)
    counter = Counter("meta")
    with counter.active():
        y = F.dropout(x, 0.1, training=True)
        assert counter.alive == 2000 + 1000
        assert F.dropout(y, 0.1, training=False) is not None
    assert by_kind(counter) == {ELEMENTWISE: (0, 2000 + 2000 + 1000, 1)}


def test_work_adds_up():
    work = Work(1, 2, 3)
    work.add(Work(1, 1, 1), 0.5)
    assert work == Work(1.5, 2.5, 3.5)
