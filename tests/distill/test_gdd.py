"""Whole runs of GDD and GDD-I on ranks: interrupted, moved, refused, consolidated, published."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from sid_scale.demo.prepare import CLASSIFIER, TEACHER, write_digit_shards
from sid_scale.distill.build import Run, build_run
from sid_scale.distill.evaluation import OpenEvaluation, no_evaluation
from sid_scale.distill.loop import train
from sid_scale.methods.gdd import DISCRIMINATOR
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.features import FeatureNetworkError
from sid_scale.networks.folder import NetworkFolder, save_network
from sid_scale.ranks import Ranks
from sid_scale.zero.saved import STATE, read_manifest
from tests.distill.test_resume import losses
from tests.networks.edm.published import random_state
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare, write_deepspeed_json

pytestmark = pytest.mark.distributed

TOTAL = 40  # images, of 5 iterations
# As the published teachers, it takes augmentation labels.
EDM_TEACHER = EDMArchitecture(
    model_type="SongUNet",
    img_resolution=8,
    img_channels=3,
    label_dim=4,
    augment_dim=9,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
)
DIGITS = {"objective.feature_networks.digits": CLASSIFIER}
SMALL = {f"objective.discriminator.{k}": 8 for k in ("width", "projection_width", "embedding")}


class Case(NamedTuple):
    """A run, and where it is interrupted."""

    stage: int
    stop: int  # images; R1 has been due before it, or not yet
    settings: dict[str, Any]


CASES = {
    "pixels": Case(
        2, 16, {"method": "gdd", **DIGITS, "objective.teacher_sigma": 0.3, "dropout": 0.1}
    ),
    "edm": Case(3, 24, {"method": "gdd_i", "teacher": "edm", **DIGITS, "steps": 2}),
    "decoded": Case(3, 16, {"method": "gdd", **DIGITS, "objective.decoded_crop": 4}),
    "latents": Case(2, 24, {"method": "gdd_i", "objective.teacher_sigma": 0.3}),
}


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    stage, stop, of_case = CASES[name]
    given = {"warm_up": False, **SMALL, **of_case}
    given |= {"objective.r1_interval": 3 if stop == 16 else 2, "deepspeed": f"stage{stage}.json"}
    given |= {"total_images": TOTAL, "checkpoint.every_images": stop, "batch_size": 8}
    given |= {"log.samples": 4, "log.samples_every_images": TOTAL}
    if name in ("decoded", "latents"):
        given |= {"teacher": TEACHER, "data": "digits"}
    for key in ("teacher", "data", "deepspeed"):
        if key in given:
            given[key] = folder / given[key]
    return given | {"run_dir": folder / name, **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that ended without an interruption, each beside `NAME.parts`, which did
    not."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    save_network(folder / "edm", NetworkFolder(EDM_TEACHER, random_state(EDM_TEACHER)))
    write_digit_shards(folder / "digits", TEACHER)
    nothing_persists = {"stage": 3, "stage3_param_persistence_threshold": 0}
    write_deepspeed_json(folder, 3, zero_optimization=nothing_persists)
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        built: list[Run] = []
        train(config(folder, **settings(folder, name)), joined(), open_evaluation=keeping(built))
        _assert_the_same_on_all_ranks(built[0])
        for total in (case.stop, TOTAL):
            parts = settings(folder, name, run_dir=folder / f"{name}.parts", total_images=total)
            train(config(folder, **parts), joined())


def keeping(built: list[Run]) -> OpenEvaluation:
    def open_evaluation(run: Run) -> Any:
        _assert_the_same_on_all_ranks(run)
        built.append(run)
        return no_evaluation(run)

    return open_evaluation


def _assert_the_same_on_all_ranks(run: Run) -> None:
    """A checkpoint holds the first rank's buffers. Statistics of batch normalisation differ from
    rank to rank, and are never read."""
    for name, buffer in run.networks[DISCRIMINATOR].module.named_buffers():
        if name.endswith(("_u", "_v")):
            first = buffer.clone()
            dist.broadcast(first, 0)
            assert torch.equal(buffer, first), name
    for network in run.fixed.values():
        for tensor in (*network.parameters(), *network.buffers()):
            first = tensor.clone()
            dist.broadcast(first, 0)
            assert torch.equal(tensor, first)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_is_the_same_run(runs: Path, name: str):
    whole, parts = (
        read_manifest(runs / folder / "checkpoints" / "latest").files
        for folder in (name, f"{name}.parts")
    )
    assert whole.keys() == parts.keys()
    differ = [file for file in whole if whole[file] != parts[file]]
    assert differ == [STATE]  # which says when
    assert losses(runs / name) == losses(runs / f"{name}.parts")


@pytest.mark.faults
@pytest.mark.parametrize(("file", "reason"), [("none", "no such file"), ("teacher", "not a file")])
def test_a_missing_file_of_a_feature_network_is_named_with_its_source(
    tmp_path: Path, file: str, reason: str
):
    prepare(tmp_path)
    given = {"method": "gdd", "objective.feature_networks.digits": tmp_path / file, **SMALL}
    where = re.escape(f"feature network digits: {tmp_path / file}: {reason}. A file with its")
    with pytest.raises(FeatureNetworkError, match=f"^{where} weights is part of the package"):
        build_run(config(tmp_path, warm_up=False, **given), Ranks(0, 1, torch.device("cpu")))
