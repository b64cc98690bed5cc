"""One update: what its loss is given, and whose weights it moves."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.distill.ahead import Prepared, ReadAhead
from sid_scale.distill.build import Run, build_run
from sid_scale.distill.meter import Meter
from sid_scale.distill.step import apply
from sid_scale.methods import GENERATOR, TEACHER, Loss, MicroBatch, Role, Update
from sid_scale.methods.sid import SiD
from sid_scale.zero.fragments import local_fragments
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, random_images

pytestmark = pytest.mark.distributed
FAKE_SCORE = "fake_score"


def build(folder: Path, **overrides: object) -> Run:
    here = joined()
    return build_run(config(folder, **overrides), here)


class Records:
    """A loss that notes what it was given."""

    def __init__(self, role: str):
        self.role, self.given = role, []

    def __call__(self, networks, batch: MicroBatch) -> Loss:
        trainable = {
            name: any(p.requires_grad for p in getattr(network, "module", network).parameters())
            for name, network in networks.items()
        }
        modes = {name: getattr(n, "module", n).training for name, n in networks.items()}
        draws = {name: batch.noise.of(name).normal(2) for name in ("z", "noise")}
        z = torch.zeros(len(batch.condition), *batch.shape)
        step_noise = torch.ones(batch.steps - 1, *z.shape)
        steps = []

        def counted(*given, **options):
            steps.append(1)
            return networks[GENERATOR](*given, **options)

        with torch.no_grad():
            batch.generate(counted, z, step_noise)
        self.given.append((trainable, draws, torch.rand(()), len(steps), modes))
        sigma = torch.ones(len(z))
        total = networks[self.role](z, sigma, batch.condition).denoised.square().mean()
        return Loss(total, {"loss/it": total.detach()})


def carry_out(run: Run, role: str) -> Records:
    loss = Records(role)
    with run.open_streams() as streams:
        assert apply(run, Update(role, loss), streams[role], Meter(run.ranks.device))
    return loss


def test_an_update_moves_one_network_and_has_draws_of_its_own(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _one_network, tmp_path)


def _one_network(rank: int, folder: Path) -> None:
    run = build(folder, dropout=0.1)
    masters = {name: network.module for name, network in run.networks.items()}
    before = {name: _weights(module) for name, module in masters.items()}
    generator, fake_score = carry_out(run, GENERATOR), carry_out(run, FAKE_SCORE)
    for role, records in ((GENERATOR, generator), (FAKE_SCORE, fake_score)):
        for trainable, *_, modes in records.given:
            only_this = {TEACHER: False, GENERATOR: False, FAKE_SCORE: False, role: True}
            assert trainable == only_this
            assert modes == only_this, "dropout acts in the network that is trained"
        assert not torch.equal(_weights(masters[role]), before[role])
    for name in ("z", "noise"):
        # Same samples, other roles: other draws; and other samples too.
        (_, first, *_), (_, second, *_) = generator.given
        assert not torch.equal(first[name], fake_score.given[0][1][name])
        assert not torch.equal(first[name], second[name])
    assert generator.given[0][2] != generator.given[1][2], "dropout differs by micro-batch"
    assert run.progress.positions == {GENERATOR: 8, FAKE_SCORE: 8}


def test_real_images_are_the_stored_ones_and_mirrored_at_even_odds_if_asked_for(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _real_images, tmp_path)


def _real_images(rank: int, folder: Path) -> None:
    plain, flipped = (_real(build(folder, stream__xflip=xflip)) for xflip in (False, True))
    stored = torch.from_numpy(random_images(40)).float() / 127.5 - 1
    assert all((stored == image).all(dim=(1, 2, 3)).any() for image in plain)
    mirrored = (flipped == plain.flip(3)).all(dim=(1, 2, 3))
    assert (flipped == plain).all(dim=(1, 2, 3)).equal(~mirrored)
    assert 0 < mirrored.sum() < len(mirrored)
    # Keyed by sample: not by the micro-batch that it is in.
    assert flipped.equal(_real(build(folder, stream__xflip=True, micro_batch=8)))


def _real(run: Run) -> torch.Tensor:
    """The real images of the fake score's first update."""
    given = []

    def loss(networks, batch: MicroBatch) -> Loss:
        given.append(batch.real())
        z = torch.zeros(len(batch.condition), *batch.shape)
        total = networks[FAKE_SCORE](z, torch.ones(len(z)), batch.condition).denoised.square()
        return Loss(total.mean(), {})

    with run.open_streams() as streams:
        assert apply(run, Update(FAKE_SCORE, loss), streams[FAKE_SCORE], Meter(run.ranks.device))
    return torch.cat(given)


def _weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_masters_of_a_roles_own_network_have_the_magnitude_of_those_in_files(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _own_network, tmp_path)


def _own_network(rank: int, folder: Path) -> None:
    def roles(method: SiD) -> list[Role]:
        return [dataclasses.replace(role, build=lambda a: a.build()) for role in given(method)]

    given = SiD.roles
    with patch.object(SiD, "roles", roles):
        run = build(folder, method="sid", data="null", forced_weight_norm=False)
    for network in run.networks.values():
        scales = network.module.forward_scales()
        for fragment in local_fragments(network.engine):
            if fragment.name in scales and fragment.numel > 100:
                rms = fragment.master.square().mean().sqrt()
                assert rms == pytest.approx(1, abs=0.3), fragment.name


def test_noise_that_is_drawn_ahead_changes_no_loss_and_no_weight(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _drawn_ahead, tmp_path)


def _drawn_ahead(rank: int, folder: Path) -> None:
    def on_demand(run: Run, role: str, stream: ReadAhead) -> Iterator[Prepared]:
        for batch, _ in stream:
            noise = KeyedNoise(run.config.seed, role, batch.index, run.ranks.device)
            yield Prepared(batch, noise)

    found = []
    for ahead in (True, False):
        run = build(folder, method="sida", steps=2)
        meter = Meter(run.ranks.device)
        with run.open_streams() as opened:
            streams = {
                role: stream if ahead else on_demand(run, role, stream)
                for role, stream in opened.items()
            }
            for _ in range(2):
                for update in run.method.updates(1000):
                    assert apply(run, update, streams[update.role], meter)
        weights = [_weights(network.module) for network in run.networks.values()]
        found.append((meter.report(), torch.cat(weights)))
    (losses, weights), (losses_on_demand, weights_on_demand) = found
    assert {"loss/fake_score", "loss/discriminator", "loss/generator_gan"} <= losses.keys()
    assert losses == losses_on_demand
    assert weights.equal(weights_on_demand)


def test_a_few_step_generator_is_trained_at_every_step_in_turn(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _every_step, tmp_path)


def _every_step(rank: int, folder: Path) -> None:
    run = build(folder, steps=4)
    seen = []
    for images_seen in range(0, 160, 8):
        run.progress.images_seen = images_seen
        steps = {given[3] for given in carry_out(run, FAKE_SCORE).given}
        assert len(steps) == 1  # the same one for all micro-batches of an iteration
        seen += steps
    assert set(seen) == {1, 2, 3, 4}
