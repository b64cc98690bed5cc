"""What is counted before a run is what the run has: real ranks, every tensor's bytes."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from sid_scale.demo.prepare import CLASSIFIER
from sid_scale.distill.build import Run, build_run
from sid_scale.distill.meter import Meter
from sid_scale.distill.step import apply
from sid_scale.estimate.count import Counter
from sid_scale.estimate.report import make_plan
from sid_scale.estimate.roofline import kernels, sum_bytes, update_bytes
from sid_scale.estimate.state import gathered_bytes, state_bytes
from sid_scale.estimate.step import total
from sid_scale.networks.folder import NetworkFolder, save_network
from sid_scale.zero.fragments import local_fragments, stage_of
from tests.estimate.plans import BF16, FLOAT32_GRADIENTS
from tests.networks.edm.published import ADM, DDPMPP, random_state
from tests.ranks import joined, run_ranks
from tests.tiny import config, freezing_generator, prepare, write_deepspeed_json

pytestmark = pytest.mark.distributed

GDD = {
    "warm_up": False,
    "method": "gdd",
    "objective.teacher_sigma": 0.3,
    "objective.feature_networks.digits": CLASSIFIER,
    "objective.discriminator.width": 8,
}
GDD_I = {**GDD, "method": "gdd_i"}
SMALL_BUCKETS = {"reduce_bucket_size": 100_000, "stage3_param_persistence_threshold": 0}


def nbytes(tensors) -> int:
    """Of storages, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_state_is_what_ranks_hold_at_every_stage(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _compare_state, tmp_path)


def _compare_state(rank: int, folder: Path) -> None:
    here, frozen = joined(), ("convolutions", "skip")
    summed = {**BF16, **FLOAT32_GRADIENTS}
    for stage, more, freeze, of_method in (
        (0, {}, (), {}),
        (1, BF16, (), {}),
        (2, summed, (), {}),
        (3, summed, (), {}),
        (2, summed, frozen, {}),
        (3, summed, frozen, {}),
        (1, BF16, (), GDD),
        (2, summed, (), GDD),
        (3, summed, (), GDD_I),
    ):
        ds = write_deepspeed_json(folder / f"ds{rank}", stage, **more)
        given = config(folder, deepspeed=ds, batch_size=16, **of_method)
        with freezing_generator(*freeze):
            plan = make_plan(given, 1, 2)
            held = _held(build_run(given, here))
        expected = state_bytes(plan.sharding)
        assert {k: v / expected[k] for k, v in held.items()} == pytest.approx(
            dict.fromkeys(held, 1.0), abs=0.02
        ), (stage, of_method)


def _held(run: Run) -> dict[str, int]:
    """Bytes by kind after an iteration; weights and gradients at their most before a step."""
    gradients, weights = [], []
    engines = [network.engine for network in run.networks.values()]
    parameters = [p for e in engines for p in e.module.parameters()]
    for network in run.networks.values():

        def step(network=network, original=network.step):
            gradients.append(sum(_gradients(engine) for engine in engines))
            weights.append(nbytes([p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]))
            weights[-1] += nbytes(parameters)
            return original()

        network.step = step
    _iterate(run)
    flats = [f.flat for e in engines for f in local_fragments(e)]
    moments = [
        t
        for e in engines
        for state in e.basic_optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor) and t.ndim
    ]
    return {
        "weights": max(weights),
        "optimizer": nbytes([*flats, *moments]),
        "average": nbytes(run.ema.values),
        "fixed": nbytes([t for n in run.fixed.values() for t in (*n.parameters(), *n.buffers())]),
        "gradients": max(gradients),
    }


def _gradients(engine: DeepSpeedEngine) -> int:
    """Between two micro-batches."""
    stage = stage_of(engine)
    if stage == 3:
        return nbytes([engine.optimizer.grad_partitions_flat_buffer])
    found = [p.grad for p in engine.module.parameters()]
    found += [f.flat.grad for f in local_fragments(engine)]
    if stage:
        for kept in (engine.optimizer.averaged_gradients, engine.optimizer.all_grad_tensors):
            found += [t for of_group in kept.values() for t in of_group or []]
    return nbytes([t for t in found if t is not None])


def _iterate(run: Run) -> None:
    with run.open_streams() as streams:
        for update in run.method.updates(0):
            apply(run, update, streams[update.role], Meter(run.ranks.device))


@pytest.mark.parametrize(
    ("ranks", "stages", "how"), [(1, (2,), "checkpoint"), (2, (0, 2, 3), "keep")]
)
def test_peak_is_that_of_the_same_step_on_ranks(
    tmp_path: Path, ranks: int, stages: tuple[int, ...], how: str
):
    prepare(tmp_path)
    run_ranks(ranks, _compare_peak, tmp_path, stages, how, {})


@pytest.mark.parametrize("how", ["keep", "checkpoint"])
def test_peak_of_a_pixel_network_is_that_of_the_same_step_on_a_rank(tmp_path: Path, how: str):
    prepare(tmp_path)
    save_network(tmp_path / "teacher", NetworkFolder(DDPMPP, random_state(DDPMPP)))
    of_pixels = {"objective__logvar_weighting": "false", "objective__augmentation": 0.5}
    run_ranks(1, _compare_peak, tmp_path, (2,), how, of_pixels)


def _compare_peak(
    rank: int, folder: Path, stages: tuple[int, ...], how: str, more: dict[str, Any]
) -> None:
    here = joined()
    settings = {
        **more,
        "micro_batch": 16,
        "batch_size": 16 * here.world_size,
        "activations": f"{{generator: {how}, fake_score: {how}, teacher: {how}}}",
    }
    for stage in stages:
        zero = {"zero_optimization": {"stage": stage, **SMALL_BUCKETS}}
        ds = write_deepspeed_json(folder / f"ds{rank}", stage, **BF16, **zero)
        given = config(folder, deepspeed=ds, **settings)
        plan = make_plan(given, 1, here.world_size)
        run = build_run(given, here)
        _iterate(run)  # makes the optimizers' state
        before = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
        counter = Counter("cpu", given=before)
        with counter.active():
            _iterate(run)
        expected = plan.memory.activations + gathered_bytes(plan.sharding)
        assert max(counter.peak.values()) == pytest.approx(expected, rel=0.1)


def test_bytes_and_kernels_are_those_of_an_iteration_on_ranks(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _compare_work, tmp_path, {})


@pytest.mark.parametrize("architecture", [DDPMPP, ADM], ids=["ddpmpp", "adm"])
def test_bytes_and_kernels_of_a_network_without_normalised_weights(tmp_path: Path, architecture):
    prepare(tmp_path)
    save_network(tmp_path / "teacher", NetworkFolder(architecture, random_state(architecture)))
    run_ranks(2, _compare_work, tmp_path, {"objective__logvar_weighting": "false"})


def _compare_work(rank: int, folder: Path, more: dict[str, Any]) -> None:
    ds = write_deepspeed_json(folder / f"ds{rank}", 2, **BF16, **FLOAT32_GRADIENTS)
    given = config(folder, deepspeed=ds, batch_size=16, **more)
    plan = make_plan(given, 1, 2)
    run = build_run(given, joined())
    _iterate(run)
    counter = Counter("cpu")
    with counter.active():
        _iterate(run)
        run.ema.update(0.5)
    done = total(counter.work)
    s, counted = plan.sharding, plan.count.total
    moved = 2 * counted.nbytes + sum_bytes(s, 2) + update_bytes(s)
    assert done.nbytes == pytest.approx(moved, rel=0.1)
    assert done.kernels == pytest.approx(kernels(s, plan.count, 2), rel=0.1)
    assert done.flop == pytest.approx(2 * counted.flop, rel=0.05)
