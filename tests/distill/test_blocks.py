"""Recomputed and compiled blocks: the same training, with less memory and other kernels."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sid_scale.distill.build import Run, build_run
from sid_scale.distill.meter import Meter
from sid_scale.distill.step import apply
from sid_scale.methods import GENERATOR, TEACHER
from sid_scale.zero.fragments import local_fragments
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, write_deepspeed_json

pytestmark = pytest.mark.distributed
FAKE_SCORE = "fake_score"
ITERATIONS = 2


def build(folder: Path, deepspeed: Path, **overrides: object) -> Run:
    """A run of SiDA: two ranks, accumulation 2, dropout, all weights kept normalised."""
    given = {
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
    for network in (run.teacher, *(n.module for n in run.networks.values())):
        for block, _ in network.checkpointable():
            hooks.append(block.register_forward_pre_hook(called))
            hooks.append(block.conv_res0.register_forward_pre_hook(runs))
    yield counts
    for hook in hooks:
        hook.remove()


def test_recomputed_blocks_train_to_the_same_bits_at_every_stage(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _recomputed, tmp_path)


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
