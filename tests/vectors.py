"""Reading the reference vectors; every shape comes from the files."""

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_scale.diffusion.augment import AugmentationDraws
from sid_scale.methods.settings import FakeScoreSettings, SiDObjective, WarmUp
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.layers import normalise_rows
from sid_scale.networks.folder import NetworkFolder


class Vectors:
    """One file of vectors: `v["x"]` is a tensor, `v.network("param.")` a network."""

    def __init__(self, path: Path, config_from: Path | None = None):
        self._arrays = np.load(path)
        source = self._arrays if config_from is None else np.load(config_from)
        self.settings: dict[str, Any] = json.loads(str(source["config"]))

    @cached_property
    def config(self) -> EDMArchitecture | EDM2Architecture:
        """The architecture of the file's networks."""
        family = EDMArchitecture if "model_type" in self.settings else EDM2Architecture
        names = {f.name for f in dataclasses.fields(family)}
        return family(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in self.settings.items()
                if key in names
            }
        )

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self._arrays.files

    def classes(self, key: str) -> Tensor:
        """One-hot labels (N, label_dim) of the file as class indices (N,)."""
        one_hot = self[key]
        assert torch.equal(one_hot.sum(dim=1), torch.ones(len(one_hot)))
        return one_hot.argmax(dim=1)

    def named(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under a prefix, by the rest of their names."""
        names = [key for key in self._arrays.files if key.startswith(prefix)]
        return {key[len(prefix) :]: self[key] for key in names}

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The weights under a prefix, shaped as in memory."""
        return self.config.from_file(self.named(prefix))

    def folder(self, prefix: str, *, uncertainty: bool = True) -> NetworkFolder:
        """The network under a prefix; without `uncertainty` its logvar head is left out."""
        whole = NetworkFolder(self.config, self.state(prefix))
        return whole if uncertainty else whole.with_architecture(self.config.headless())

    def network(self, prefix: str, dtype: torch.dtype = torch.float32) -> Denoiser:
        """The network under a prefix, computing in `dtype`."""
        return self.folder(prefix).build(dtype)


def recorded_objective(settings: dict[str, Any]) -> SiDObjective:
    """The settings of SiDA's losses with which a file's iterations were recorded."""
    return SiDObjective(
        alpha=settings["alpha"],
        tmax=settings["tmax"],
        loss_scale_generator=settings["loss_scale_g"],
        loss_scale_generator_gan=settings["loss_scale_g_gan"],
        loss_scale_discriminator=settings["loss_scale_d"],
        fake_score=FakeScoreSettings(
            learning_rate=settings["lr"],
            forced_weight_norm=settings["forced_weight_norm"]["fake_score"],
            p_mean=settings["P_mean"],
            p_std=settings["P_std"],
        ),
        warm_up=WarmUp(generator_images=0, adversarial_images=0),
    )


def recorded_augmentation(read: Callable[[str], Tensor], prefix: str) -> AugmentationDraws:
    """The augmentation's draws of a file, whose arrays `read` gives: `Vectors.__getitem__`."""
    one_each = (name for name in AugmentationDraws._fields if name != "translate")
    draws = {name: read(prefix + name).flatten() for name in one_each}
    flips = {name: draws.pop(name).bool() for name in ("xflip", "yflip")}
    return AugmentationDraws(**draws, **flips, translate=read(f"{prefix}translate").T)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def weight_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Per parameter, the relative distance (2-norm) after row normalisation.

    A norm rather than a maximum: Adam's first step is the gradient's sign, and where rounding
    decides the sign of a vanishing gradient one element differs by twice the learning rate.
    """

    def rows(w: Tensor) -> Tensor:
        return normalise_rows(w) if w.ndim > 1 else w

    return {
        name: float((rows(actual[name]) - rows(w)).norm() / rows(w).norm())
        for name, w in expected.items()
    }
