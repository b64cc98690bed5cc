"""Recomputed and compiled blocks: the same training, with less memory and other kernels."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor

from sid_scale.config.parse import ConfigError
from sid_scale.distill import blocks
from sid_scale.distill.build import Run, build_run
from sid_scale.distill.meter import Meter
from sid_scale.distill.outputs import generate_samples
from sid_scale.distill.step import apply
from sid_scale.methods import GENERATOR, TEACHER
from sid_scale.networks.compile_blocks import compile_blocks
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.folder import NetworkFolder, save_network
from sid_scale.ranks import Ranks
from sid_scale.zero.fragments import local_fragments
from sid_scale.zero.settings import DeepSpeedConfigError
from tests.ranks import joined, run_ranks
from tests.tiny import ARCHITECTURE, config, prepare, write_deepspeed_json

pytestmark = pytest.mark.distributed
FAKE_SCORE = "fake_score"
ITERATIONS = 2
# One block in the encoder, four in the decoder: each takes some time to compile.
FEW_BLOCKS = dataclasses.replace(ARCHITECTURE, channel_mult=(1,), num_blocks=1)
BLOCKS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs need, and a teacher of few blocks."""
    folder = prepare(tmp_path_factory.mktemp("blocks"))
    torch.manual_seed(0)
    save_network(folder / "few", NetworkFolder(FEW_BLOCKS, EDM2(FEW_BLOCKS).state_dict()))
    return folder


def build(folder: Path, deepspeed: Path, **overrides: object) -> Run:
    """A run of SiDA: two ranks, accumulation 2, dropout, all weights kept normalised."""
    given = {
        "teacher": folder / "few",
        "deepspeed": deepspeed,
        "micro_batch": 2,
        "dropout": 0.1,
        "objective.fake_score.forced_weight_norm": True,
        **overrides,
    }
    return build_run(config(folder, **given), joined())


def iterate(run: Run, iterations: int = ITERATIONS) -> None:
    meter = Meter(run.ranks.device)
    with run.open_streams() as streams:
        for _ in range(iterations):
            for update in run.method.updates(run.progress.images_seen):
                assert apply(run, update, streams[update.role], meter)
            run.progress.images_seen += run.config.batch_size


def masters(run: Run) -> dict[str, Tensor]:
    """This rank's float32 masters, by role and number."""
    fragments = {role: local_fragments(n.engine) for role, n in run.networks.items()}
    return {
        f"{role}.{number}": fragment.master.clone()
        for role, of_role in fragments.items()
        for number, fragment in enumerate(of_role)
    }


@contextmanager
def counted_forwards(run: Run) -> Iterator[Counter]:
    """Counts, over all networks, how often blocks run: `all`, and `called with a gradient`."""
    counts: Counter[str] = Counter()

    def called(*_: object) -> None:
        counts["called with a gradient"] += torch.is_grad_enabled()

    def runs(*_: object) -> None:
        counts["all"] += 1

    hooks = []
    for network in (run.fixed[TEACHER], *(n.module for n in run.networks.values())):
        for block, _ in network.checkpointable():
            hooks.append(block.register_forward_pre_hook(called))
            hooks.append(block.conv_res0.register_forward_pre_hook(runs))
    yield counts
    for hook in hooks:
        hook.remove()


def test_recomputed_blocks_train_to_the_same_bits_at_every_stage(folder: Path):
    run_ranks(2, _recomputed, folder)


def _recomputed(rank: int, folder: Path) -> None:
    for stage in (0, 1, 2, 3):
        # Nothing persists on every rank at stage 3, as in a network of real size.
        zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
        ds = write_deepspeed_json(folder / str(rank), stage, zero_optimization=zero)
        kept, forwards = _trained(folder, ds, "keep", "keep")
        again = forwards["called with a gradient"]
        assert forwards["all"] > again > 0
        # The frozen teacher's offload adds gradients up in another order.
        ways = [("checkpoint", "checkpoint"), *([("offload", "checkpoint")] if stage == 3 else [])]
        for trained, teacher in ways:
            ends, counts = _trained(folder, ds, trained, teacher)
            assert counts["all"] == forwards["all"] + again, (stage, trained)
            for name, master in ends.items():
                assert torch.equal(master, kept[name]), (stage, trained, name)


def _trained(
    folder: Path, deepspeed: Path, trained: str, teacher: str
) -> tuple[dict[str, Tensor], Counter]:
    """Masters after some iterations, and how often blocks ran."""
    held = {GENERATOR: trained, FAKE_SCORE: trained, TEACHER: teacher}
    run = build(folder, deepspeed, **{f"activations.{name}": how for name, how in held.items()})
    with counted_forwards(run) as counts:
        iterate(run)
    return masters(run), counts


def test_compiled_blocks_train_alike_and_are_compiled_once(folder: Path):
    run_ranks(2, _compiled, folder)


def _compiled(rank: int, folder: Path) -> None:
    # Inductor takes a minute on a CPU; this backend traces and differentiates the same graphs.
    blocks.compile_blocks = partial(compile_blocks, backend="aot_eager")
    plain = build(folder, folder / "stage2.json", dropout=0.0)
    iterate(plain)
    recomputed = {"activations.fake_score": "checkpoint", "activations.teacher": "checkpoint"}
    run = build(folder, folder / "stage2.json", dropout=0.0, compile_blocks=True, **recomputed)
    iterate(run, 1)
    # Of the generator without gradient and in training, of the fake score in training and frozen,
    # and of the teacher.
    frames = torch._dynamo.utils.counters["frames"]
    assert frames == {"total": 5 * BLOCKS, "ok": 5 * BLOCKS}
    assert not torch._dynamo.utils.counters["graph_break"]
    iterate(run, ITERATIONS - 1)
    run.ema.update(0.0)
    generate_samples(run, 5, micro_batch=3)  # as written
    assert frames == {"total": 5 * BLOCKS, "ok": 5 * BLOCKS}
    expected = masters(plain)
    for name, master in masters(run).items():
        torch.testing.assert_close(master, expected[name], rtol=1e-4, atol=1e-4)


def test_r1_differentiates_a_recomputed_or_compiled_teachers_gradient(folder: Path):
    run_ranks(1, _differentiated, folder)


def _differentiated(rank: int, folder: Path) -> None:
    kept = _ends_of_gdd(folder)
    for how in ("checkpoint", "offload"):
        for name, master in _ends_of_gdd(folder, **{"activations.teacher": how}).items():
            assert torch.equal(master, kept[name]), (how, name)
    blocks.compile_blocks = partial(compile_blocks, backend="aot_eager")
    _ends_of_gdd(folder, compile_blocks=True, teacher=folder / "few")


def _ends_of_gdd(folder: Path, **given: object) -> dict[str, Tensor]:
    """Masters after two iterations, the second with R1 through the teacher's attention."""
    sizes = {f"objective.discriminator.{k}": 8 for k in ("width", "projection_width", "embedding")}
    given |= {"method": "gdd", "objective.teacher_sigma": 0.1, "objective.r1_interval": 1, **sizes}
    run = build_run(config(folder, warm_up=False, **given), joined())
    iterate(run)
    return masters(run)


@pytest.fixture
def alone() -> Ranks:
    """A rank that has met no others: nothing gets so far that it needs them."""
    return Ranks(0, 1, torch.device("cpu"))


def test_blocks_are_not_compiled_at_stage_3(folder: Path, alone: Ranks):
    given = {"deepspeed": folder / "stage3.json", "compile_blocks": True}
    with pytest.raises(DeepSpeedConfigError, match=r"compile_blocks: .*stage3\.json .* stage 3"):
        build_run(config(folder, **given), alone)


def test_a_missing_compiler_is_named(folder: Path, alone: Ranks, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"there is no compiler \(no-such-compiler\): .* CXX"):
        build_run(config(folder, compile_blocks=True), alone)


def test_a_resolution_that_a_network_lacks_is_named(folder: Path, alone: Ranks):
    given = {"activations.fake_score": "[8, 16]"}
    with pytest.raises(ConfigError, match=r"activations\.fake_score: .* resolution 16; it has 8"):
        build_run(config(folder, **given), alone)
