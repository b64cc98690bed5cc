"""Noise levels are the published ones."""

import torch

from sid_scale.diffusion.sigma import generator_sigma, karras_ramp, lognormal_sigma


def test_ramp_runs_from_smallest_to_largest_sigma():
    ends = karras_ramp(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0]))


def test_tmax_leaves_the_largest_sigmas_out():
    assert generator_sigma(torch.tensor(1.0), 800) == karras_ramp(torch.tensor(0.8))


def test_lognormal_sigma():
    sigma = lognormal_sigma(torch.tensor([0.0, 1.0]), -0.4, 1.0)
    torch.testing.assert_close(sigma.log(), torch.tensor([-0.4, 0.6]))
