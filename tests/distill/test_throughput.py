"""How fast a run says that it trains, and of what."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from sid_scale.config.run import RunConfig
from sid_scale.distill import loop, throughput
from sid_scale.distill.loop import train
from sid_scale.distill.throughput import Throughput, Work, measured_peak
from sid_scale.estimate.flops import flop_by_update
from sid_scale.metrics_log import read_metrics
from sid_scale.ranks import Ranks
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare


def cannot_count(config: RunConfig, ranks: int) -> Mapping[str, float]:
    raise ValueError("no such count")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs on two ranks: `counted`, `uncountable` and `plain`."""
    folder = prepare(tmp_path_factory.mktemp("throughput"))
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    kinds = {"counted": flop_by_update, "uncountable": cannot_count, "plain": None}
    loop.waited = lambda streams: [0.5, 2.0][rank]  # since the first iteration
    for name, count in kinds.items():
        of_kind = {"run_dir": folder / name, "log.peak_tflops": 1e-6}
        of_kind["objective.warm_up.generator_images"] = 16
        with redirect_stdout(StringIO()) as told:
            train(config(folder, **of_kind), joined(), count_flop=count)
        if rank == 0:
            (folder / f"{name}.txt").write_text(told.getvalue())


@pytest.mark.distributed
def test_work_of_the_updates_that_were_made_by_time(runs: Path):
    flop = flop_by_update(config(runs), ranks=2)
    for record in read_metrics(runs / "counted"):
        updates = flop if record["images_seen"] > 16 else ["fake_score"]  # in its warm-up
        of_image = sum(flop[label] for label in updates)
        rate = of_image * record["images_per_second_per_device"]
        assert record["tflops_per_device"] == pytest.approx(rate / 1e12)
        assert record["mfu"] == pytest.approx(rate / 1e6)
    told = (runs / "counted.txt").read_text()
    assert f"TFLOP of an image by update: fake_score {flop['fake_score'] / 1e12:.3g}, gen" in told
    assert "; mfu is the share of 1e-06 TFLOP/s (log.peak_tflops)" in told


@pytest.mark.distributed
def test_the_rank_that_waits_longest_for_data_counts(runs: Path):
    waits = [record["data_wait_seconds"] for record in read_metrics(runs / "counted")]
    assert waits == [2.0, 0.0, 0.0, 0.0]


@pytest.mark.distributed
def test_checkpoints_and_sample_grids_are_pauses(runs: Path):
    pauses = {r["images_seen"]: r["pause_seconds"] for r in read_metrics(runs / "counted")}
    assert pauses[24] > max(pauses[8], pauses[16], pauses[32])  # they came after 16 images


@pytest.mark.distributed
def test_a_method_that_cannot_be_counted_is_trained_all_the_same(runs: Path):
    assert "no tflops_per_device, no mfu: no such count" in (runs / "uncountable.txt").read_text()
    for record in read_metrics(runs / "uncountable"):
        assert not {"tflops_per_device", "mfu"} & record.keys()


@pytest.mark.distributed
def test_nothing_of_it_touches_the_training(runs: Path):
    def trained(name: str) -> list[dict[str, float]]:
        kinds = ("loss/", "grad_norm/", "logits/", "sid_loss_by_sigma/")
        return [
            {key: value for key, value in record.items() if key.startswith(kinds)}
            for record in read_metrics(runs / name)
        ]

    assert trained("counted") == trained("plain")


def test_pauses_are_left_out_of_the_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run.yaml").write_text("")
    now = iter([0.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(throughput, "_most", lambda value, device: value)
    clock = Throughput(
        config(tmp_path), Ranks(0, 1, torch.device("cpu")), Work({"generator": 1e12}, 4e12)
    )
    clock.start(images_seen=64)
    clock.updated("generator")  # a batch of 8
    clock.pause(6.0)
    assert clock.read(72, waited=1.0) == {
        "images_per_second": 2.0,
        "images_per_second_per_device": 2.0,
        "data_wait_seconds": 1.0,
        "pause_seconds": 6.0,
        "tflops_per_device": 2.0,
        "mfu": 0.5,
    }


def test_a_device_is_measured_without_touching_the_runs_random_numbers():
    before = torch.get_rng_state()
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e8  # FLOP/s
    assert torch.equal(torch.get_rng_state(), before)
