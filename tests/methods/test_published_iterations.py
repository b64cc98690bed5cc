"""Two whole SiDA iterations of the published code, recorded draw by draw, are reproduced."""

import json
from pathlib import Path

import pytest
import torch

from sid_scale.config.groups import ObjectiveConfig
from sid_scale.diffusion.few_step import generate
from sid_scale.distill.step import Draws, fake_score_loss, generator_loss
from sid_scale.zero.engines import AdamConfig, ShardedNetwork, read_deepspeed_json
from sid_scale.zero.fragments import gather_parameters, local_fragments
from tests.ranks import run_ranks
from tests.vectors import Vectors, weight_error

pytestmark = [pytest.mark.reference, pytest.mark.distributed]

LOSS_TOLERANCE = 1e-4  # relative
WEIGHT_TOLERANCE = 1e-4  # relative, after row normalisation


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_iterations_at_every_stage(ranks: int, reference_dir: Path, tmp_path: Path):
    name = f"sida_two_steps_{ranks}rank{'s' if ranks > 1 else ''}.npz"
    run_ranks(ranks, _every_stage, reference_dir / name, tmp_path)


def _every_stage(rank: int, file: Path, folder: Path) -> None:
    vectors = Vectors(file)
    for stage in (0, 1, 2, 3):
        ds_json = folder / f"stage{stage}-rank{rank}.json"
        ds_json.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        _two_iterations(rank, vectors, ds_json)


def _two_iterations(rank: int, v: Vectors, ds_json: Path) -> None:
    s = v.settings
    objective = ObjectiveConfig(
        alpha=s["alpha"],
        tmax=s["tmax"],
        init_sigma=s["init_sigma"],
        p_mean=s["P_mean"],
        p_std=s["P_std"],
        loss_scale_generator=s["loss_scale_g"],
        loss_scale_generator_gan=s["loss_scale_g_gan"],
        loss_scale_discriminator=s["loss_scale_d"],
    )
    adam = AdamConfig(s["lr"], tuple(s["betas"]), s["eps"])
    settings = read_deepspeed_json(ds_json, s["batch_per_rank"], 1)
    norms = s["forced_weight_norm"]
    generator = ShardedNetwork(
        v.network("teacher.", uncertainty=False).requires_grad_(True),
        settings,
        adam,
        forced_norm=norms["generator"],
    )
    fake_score = ShardedNetwork(
        v.network("teacher.").requires_grad_(True),
        settings,
        adam,
        forced_norm=norms["fake_score"],
    )
    teacher = v.network("teacher.")

    for iteration in range(2):

        def recorded(key: str, at: int = iteration) -> torch.Tensor:
            return v[f"it{at}.rank{rank}.{key}"]

        def draws(role: str, level: str) -> Draws:
            z = recorded(f"{role}.z_unit")
            return Draws(
                z, z[None][:0], recorded(f"{role}.{level}"), recorded(f"{role}.noise_unit")
            )

        labels = recorded("fake.labels")
        d = draws("fake", "sigma_normal")
        with torch.no_grad():
            images = generate(generator.module, d.latent, d.between, labels, s["init_sigma"])
        real = recorded("fake.real_unit") * s["sigma_data"]
        loss = fake_score_loss(fake_score, images, real, labels, d, objective, s["sigma_data"])
        _close(loss.terms["fake_score"], recorded("fake.loss"))
        _close(loss.terms["discriminator"], recorded("fake.loss_d"))
        fake_score.backward(loss.total)
        assert fake_score.step()

        labels = recorded("gen.labels")
        d = draws("gen", "uniform")
        images = generate(generator, d.latent, d.between, labels, s["init_sigma"])
        with fake_score.frozen() as frozen:
            loss = generator_loss(teacher, frozen, images, labels, d, objective, adversarial=True)
            generator.backward(loss.total)
        _close(loss.terms["generator_sid"], recorded("gen.loss_sid"))
        _close(loss.terms["generator_gan"], recorded("gen.loss_gan"))
        assert generator.step()

    for trained, prefix in ((fake_score, "final.fake."), (generator, "final.gen.")):
        fragments = local_fragments(trained.engine)
        state = gather_parameters(trained.engine, fragments, [f.master for f in fragments])
        if state is not None:
            expected = {k: w for k, w in v.state(prefix).items() if k in state}
            assert set(expected) == set(state)
            errors = weight_error(state, expected)
            assert max(errors.values()) < WEIGHT_TOLERANCE, errors


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert abs(float(actual) - float(expected)) <= LOSS_TOLERANCE * abs(float(expected))
