"""How much computing a run is, counted before it begins, on networks without numbers ("meta").

Counted are multiplications and additions of matrices and convolutions, as
`torch.utils.flop_counter` does it: 2 FLOP for each pair. Everything else costs time but no FLOP.
"""

import dataclasses
from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from sid_scale.methods import TEACHER, Method
from sid_scale.networks import Architecture

# Forward and backward of a pass, in forward passes: a backward pass to the input alone costs one,
# one to weights and input two.
COST = {"none": 1, "input": 2, "weights": 3}
# Of an H100's 989 bfloat16 TFLOP/s: an assumption, not a measurement.
ASSUMED_TFLOPS = 0.35 * 989


def flop_per_image(method: Method, teacher: Architecture) -> float:
    """FLOP of one iteration for each image of its batch; `teacher` is its architecture."""
    architectures = {role.name: role.architecture(teacher) for role in method.roles()}
    architectures[TEACHER] = teacher
    # Several roles and passes share a forward; counting one takes seconds for a large network.
    forwards: Counter[tuple[Architecture, bool]] = Counter()
    for p in method.passes():
        forwards[architectures[p.network], p.decode] += p.times * COST[p.gradient]
    return sum(
        times * forward_flop(architecture, decode=decode)
        for (architecture, decode), times in forwards.items()
    )


def forward_flop(architecture: Architecture, *, decode: bool = True) -> float:
    """FLOP of a forward pass of one sample; without `decode` of the encoder alone."""
    architecture = dataclasses.replace(architecture, dropout=0.0)
    with torch.device("meta"):
        network = architecture.build()
        images = torch.empty(1, *architecture.sample_shape)
        condition = torch.empty(1, dtype=torch.int64) if architecture.label_dim else None
        sigma = torch.empty(1, 1, 1, 1)
    with FlopCounterMode(display=False) as counter:
        network(images, sigma, condition, decoded=None if decode else 0)
    return float(counter.get_total_flops())


def gpu_hours(flop: float) -> float:
    """Hours of one GPU at the assumed rate."""
    return flop / (ASSUMED_TFLOPS * 1e12) / 3600
