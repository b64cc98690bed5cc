"""The benchmark's baseline computes what the published implementations compute."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plain_edm2 import PlainEDM2
from plain_step import Draws, PlainStep
from torch import Tensor

from tests.vectors import recorded_objective, relative_error, weight_error

pytestmark = pytest.mark.reference

# What the networks of the vectors are built from, beside the defaults of EDM2.
NAMES = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "model_channels",
    "channel_mult",
    "num_blocks",
    "attn_resolutions",
    "channels_per_head",
    "logvar_channels",
)


class File:
    """One file of vectors."""

    def __init__(self, path: Path):
        self._arrays = np.load(path)
        self.config: dict[str, Any] = json.loads(str(self._arrays["config"]))
        self.network = {name: self.config[name] for name in NAMES}
        self.network |= {"dropout": 0.0, "sigma_data": 0.5}

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key])

    def state(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self._arrays.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self[name] for name in names}


@torch.no_grad()
def test_the_network_is_the_published_one(reference_dir: Path):
    v = File(reference_dir / "edm2_forward.npz")
    network = PlainEDM2(**v.network).eval()
    network.load_state_dict(v.state("param."))
    x, sigma = v["x"], v["sigma"].reshape(-1, 1, 1, 1)
    denoised, logvar, deepest = network(x, sigma, v["class_labels"].argmax(dim=1))
    assert relative_error(denoised, v["denoised"]) < 1e-5
    assert relative_error(logvar.flatten(), v["logvar"]) < 1e-5
    assert relative_error(deepest.mean(dim=1, keepdim=True), v["encoder_mean"]) < 1e-5
    assert relative_error(network(x, sigma, None)[0], v["denoised_no_label"]) < 1e-5
    nothing, _, of_encoder = network(x, sigma, None, decode=False)
    assert nothing is None
    assert of_encoder.shape == deepest.shape


def test_two_iterations_are_the_published_ones(reference_dir: Path):
    v = File(reference_dir / "sida_two_steps_1rank.npz")
    plain = PlainStep(_config(v.config), v.network, v.state("teacher."), torch.device("cpu"))
    for iteration in range(2):
        prefix = f"it{iteration}.rank0.fake."
        real = v[f"{prefix}real_unit"] * v.network["sigma_data"]
        draws = _draws(v, prefix, "sigma_normal")
        denoising, discriminator = plain.backward_fake_score(draws, real, _labels(v, prefix))
        plain.update_fake_score()
        assert relative_error(denoising, v[f"{prefix}loss"]) < 1e-4
        assert relative_error(discriminator, v[f"{prefix}loss_d"]) < 1e-4

        prefix = f"it{iteration}.rank0.gen."
        draws = _draws(v, prefix, "uniform")
        _, gan = plain.backward_generator(draws, _labels(v, prefix))
        plain.update_generator()
        assert relative_error(gan, v[f"{prefix}loss_gan"]) < 1e-4
    for network, prefix in ((plain.fake_score, "final.fake."), (plain.generator, "final.gen.")):
        state = {name: weight.detach() for name, weight in network.named_parameters()}
        expected = {name: w for name, w in v.state(prefix).items() if name in state}
        assert expected.keys() == state.keys()
        assert max(weight_error(state, expected).values()) < 1e-4


def _config(recorded: dict[str, Any]) -> SimpleNamespace:
    assert recorded["forced_weight_norm"] == {"fake_score": False, "generator": True}
    return SimpleNamespace(
        method="sida",
        objective=recorded_objective(recorded),
        init_sigma=recorded["init_sigma"],
        dropout=0.0,
        learning_rate=SimpleNamespace(generator=recorded["lr"]),
        adam=SimpleNamespace(betas=recorded["betas"], eps=recorded["eps"]),
        forced_weight_norm=True,
        ema=SimpleNamespace(half_life=2_000_000),
        batch_size=recorded["batch_per_rank"],
        micro_batch=recorded["batch_per_rank"],
    )


def _draws(v: File, prefix: str, sigma: str) -> Draws:
    return Draws(v[f"{prefix}z_unit"], v[prefix + sigma], v[f"{prefix}noise_unit"])


def _labels(v: File, prefix: str) -> Tensor:
    return v[f"{prefix}labels"].argmax(dim=1)
