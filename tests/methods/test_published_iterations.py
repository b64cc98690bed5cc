"""Two whole SiDA iterations of the published code, recorded draw by draw, are reproduced.

A rank takes the micro-batches of one or more recorded ranks, put together into one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sid_scale.codecs import IdentityCodec
from sid_scale.diffusion.few_step import generate
from sid_scale.methods import GENERATOR, MicroBatch, sid_losses
from sid_scale.methods.sid import SiDA
from sid_scale.zero.engines import AdamConfig, ShardedNetwork
from sid_scale.zero.fragments import gather_parameters, local_fragments
from sid_scale.zero.settings import read_deepspeed_json
from tests.ranks import run_ranks
from tests.vectors import Vectors, recorded_objective, weight_error

pytestmark = [pytest.mark.reference, pytest.mark.distributed]

LOSS_TOLERANCE = 1e-4  # relative to the sum of the magnitudes of a loss's terms
WEIGHT_TOLERANCE = 1e-4  # relative, after row normalisation


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_iterations_at_every_stage(ranks: int, reference_dir: Path, tmp_path: Path):
    name = f"sida_two_steps_{ranks}rank{'s' if ranks > 1 else ''}.npz"
    run_ranks(ranks, _every_stage, reference_dir / name, tmp_path, 1)


def test_a_larger_micro_batch_in_groups_of_the_published_size(reference_dir: Path, tmp_path: Path):
    """One rank takes what two ranks took, at once."""
    run_ranks(1, _every_stage, reference_dir / "sida_two_steps_2ranks.npz", tmp_path, 2)


def _every_stage(rank: int, file: Path, folder: Path, together: int) -> None:
    vectors = Vectors(file)
    for stage in (0, 1, 2, 3):
        ds_json = folder / f"stage{stage}-rank{rank}.json"
        ds_json.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        _two_iterations(Recorded(vectors, rank, together), ds_json)


@dataclass
class Recorded:
    """The micro-batches of `together` recorded ranks as one, in one update of one iteration."""

    v: Vectors
    rank: int  # of this process
    together: int
    update: str = ""

    def of(self, iteration: int, role: str) -> "Recorded":
        short = {"fake_score": "fake", "generator": "gen"}[role]  # the files' names of the roles
        return replace(self, update=f"it{iteration}.rank%d.{short}.")

    @property
    def prefixes(self) -> list[str]:
        first = self.rank * self.together
        return [self.update % rank for rank in range(first, first + self.together)]

    def __getitem__(self, key: str) -> Tensor:
        return torch.cat([self.v[prefix + key] for prefix in self.prefixes])

    @property
    def classes(self) -> Tensor:
        return torch.cat([self.v.classes(f"{prefix}labels") for prefix in self.prefixes])

    def mean(self, key: str) -> Tensor:
        """Of a recorded loss over the ranks."""
        return torch.stack([self.v[prefix + key] for prefix in self.prefixes]).mean()


@dataclass
class RecordedNoise:
    """The draws of one update by name, in place of random ones."""

    recorded: Recorded
    name: str = ""

    def of(self, name: str) -> "RecordedNoise":
        return RecordedNoise(self.recorded, name)

    def normal(self, *shape: int) -> Tensor:
        if self.name == "step_noise":
            return torch.empty(len(self.recorded["z_unit"]), *shape)
        key = {"z": "z_unit", "noise": "noise_unit", "sigma": "sigma_normal"}[self.name]
        return self.recorded[key]

    def uniform(self, *shape: int) -> Tensor:
        assert self.name == "sigma"
        return self.recorded["uniform"]


def _method(v: Vectors, together: int) -> SiDA:
    s = v.settings
    group = s["batch_per_rank"] if together > 1 else None
    objective = replace(recorded_objective(s), adversarial_group=group)
    config = SimpleNamespace(
        objective=objective,
        steps=1,
        forced_weight_norm=s["forced_weight_norm"]["generator"],
        learning_rate=SimpleNamespace(generator=s["lr"]),
        adam=SimpleNamespace(generator_betas=None),
    )
    return SiDA(config, v.config)


def _micro_batch(recorded: Recorded) -> MicroBatch:
    s, classes = recorded.v.settings, recorded.classes

    def images(network, z: Tensor, step_noise: Tensor) -> Tensor:
        return generate(network, z, step_noise, classes, s["init_sigma"])

    def real() -> Tensor:
        return recorded["real_unit"] * s["sigma_data"]

    return MicroBatch(
        classes,
        recorded.v.config.sample_shape,
        1,
        RecordedNoise(recorded),
        real,
        images,
        IdentityCodec().pixels,
        of_whole_batch=lambda values: values,
    )


def _two_iterations(recorded: Recorded, ds_json: Path) -> None:
    v, s = recorded.v, recorded.v.settings
    method, adam = _method(v, recorded.together), AdamConfig(s["lr"], tuple(s["betas"]), s["eps"])
    settings = read_deepspeed_json(ds_json, recorded.together * s["batch_per_rank"], 1)
    trained = {}
    for role in method.roles():
        start = v.folder("teacher.", uncertainty=role.name != GENERATOR)
        network = start.build_zero(torch.float32, torch.float32, "cpu")
        trained[role.name] = ShardedNetwork(
            network,
            settings,
            adam,
            start.state,
            forward_scales=network.forward_scales(),
            forced_norm=role.forced_norm,
        )
    teacher = v.network("teacher.")

    for iteration in range(2):
        for update in method.updates(iteration):
            told = recorded.of(iteration, update.role)
            (other,) = (name for name in trained if name != update.role)
            network = trained[update.role]
            with trained[other].frozen() as frozen, _sid_terms() as sid_terms:
                networks = {"teacher": teacher, update.role: network, other: frozen}
                loss = update.loss(networks, _micro_batch(told))
                network.backward(loss.total)
            assert network.step()
            if update.role == "fake_score":
                _close(loss.terms["loss/fake_score"], told.mean("loss"))
                _close(loss.terms["loss/discriminator"], told.mean("loss_d"))
            else:
                # A sum of large terms of both signs: its error is to be measured by those.
                magnitude = s["loss_scale_g"] * sid_terms[0].abs().sum() / len(sid_terms[0])
                _close(loss.terms["loss/generator_sid"], told.mean("loss_sid"), magnitude)
                _close(loss.terms["loss/generator_gan"], told.mean("loss_gan"))

    for name, prefix in (("fake_score", "final.fake."), ("generator", "final.gen.")):
        fragments = local_fragments(trained[name].engine)
        masters = [f.master for f in fragments]
        state = gather_parameters(trained[name].engine, fragments, masters)
        if state is not None:
            expected = {k: w for k, w in v.state(prefix).items() if k in state}
            assert set(expected) == set(state)
            errors = weight_error(state, expected)
            assert max(errors.values()) < WEIGHT_TOLERANCE, errors


@contextmanager
def _sid_terms() -> Iterator[list[Tensor]]:
    """Inside, the elements of each SiD loss are recorded."""
    elements: list[Tensor] = []
    original = sid_losses.sid_loss

    def recording(*given):
        elements.append(original(*given))
        return elements[-1]

    sid_losses.sid_loss = recording
    try:
        yield elements
    finally:
        sid_losses.sid_loss = original


def _close(actual: Tensor, expected: Tensor, magnitude: Tensor | None = None) -> None:
    scale = abs(float(expected)) if magnitude is None else float(magnitude)
    assert abs(float(actual) - float(expected)) <= LOSS_TOLERANCE * scale
