"""How much computing a run is, counted before it begins, on networks without numbers ("meta").

Counted are multiplications and additions of matrices and convolutions, as
`torch.utils.flop_counter` does it: 2 FLOP for each pair. Everything else costs time but no FLOP.
"""

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from sid_scale.config.run import RunConfig
from sid_scale.distill.build import generator_architecture
from sid_scale.networks.edm2.network import EDM2, EDM2Config

# A frozen network's backward pass, to its input alone, costs one forward pass; a trained one's two.
FROZEN, TRAINED = 2, 3
# Of an H100's 989 bfloat16 TFLOP/s: an assumption, not a measurement.
ASSUMED_TFLOPS = 0.35 * 989


def flop_per_image(architecture: EDM2Config, config: RunConfig) -> float:
    """FLOP of one iteration (step.py) for each image of its batch; `architecture` is the teacher's.

    The fake score's update generates, then trains the fake score; with real data the encoder
    once more. The generator's update trains it through the frozen teacher and fake score.
    """
    bare = generator_architecture(architecture)
    generator, whole = forward_flop(bare), forward_flop(architecture)
    steps_before = (config.steps - 1) * generator  # without a gradient
    fake_score_update = steps_before + generator + TRAINED * whole
    if config.adversarial:
        fake_score_update += TRAINED * forward_flop(architecture, encoder_only=True)
    generator_update = steps_before + TRAINED * generator + 2 * FROZEN * whole
    return fake_score_update + generator_update


def forward_flop(architecture: EDM2Config, *, encoder_only: bool = False) -> float:
    """FLOP of a forward pass of one sample."""
    architecture = dataclasses.replace(architecture, dropout=0.0)
    size = architecture.img_resolution
    with torch.device("meta"):
        network = EDM2(architecture)
        images = torch.empty(1, architecture.img_channels, size, size)
        sigma, labels = torch.empty(1, 1, 1, 1), torch.empty(1, architecture.label_dim)
    with FlopCounterMode(display=False) as counter:
        network(images, sigma, labels, encoder_only=encoder_only)
    return float(counter.get_total_flops())


def gpu_hours(flop: float) -> float:
    """Hours of one GPU at the assumed rate."""
    return flop / (ASSUMED_TFLOPS * 1e12) / 3600
