"""A generator that is trained in part: what its run writes, resumes from and consolidates."""

import io
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.cli import main
from sid_scale.config.parse import ConfigError
from sid_scale.distill.consolidate import consolidate
from sid_scale.distill.loop import train
from sid_scale.networks.folder import load_network, save_network
from sid_scale.zero.saved import TrainingStateError, opened, read_manifest, read_state
from tests.ranks import joined, run_ranks
from tests.tiny import (
    config,
    freezing_generator,
    prepare,
    tiny_folder,
    write_deepspeed_json,
)

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)
FREEZE = ("convolutions", r"unet\.out_conv\.weight")
WHOLE = {"snapshot.every_images": 16, "log.samples_every_images": 0, "forced_weight_norm": True}


def frozen(name: str) -> bool:
    return ".conv_res" in name or name.endswith((".attn_proj.weight", ".out_conv.weight"))


def assert_trained_in_part(folder: Path, start: Path) -> dict[str, torch.Tensor]:
    """-> the weights of a network folder: frozen ones as they were, to the last bit."""
    state, before = load_network(folder).state, load_network(start).state
    buffers = dict(load_network(folder).build().named_buffers())
    for name, value in state.items():
        same = torch.equal(value, before[name])
        assert same == (frozen(name) or name in buffers), name
    return state


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in ours.items():
        assert (theirs[name] - value).norm() <= 1e-4 * (1 + value.norm()), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of two ranks at each stage, of which the generator starts from another network
    than the teacher: `runs`/run0 to run3, each with its log.txt."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    save_network(folder / "start", tiny_folder(3))
    nothing_persists = {"stage": 3, "stage3_param_persistence_threshold": 0}
    write_deepspeed_json(folder, 3, zero_optimization=nothing_persists)
    run_ranks(2, _runs, folder)
    return folder


def settings(folder: Path, stage: int, **more: object) -> dict[str, object]:
    json_file = folder / f"stage{stage}.json"
    given = {"generator_init": folder / "start", "deepspeed": json_file, **WHOLE, **more}
    # Stage 3 gathers frozen weights once more for blocks that are computed again.
    return given | ({"activations": "{generator: checkpoint}"} if stage == 3 else {})


def _runs(rank: int, folder: Path) -> None:
    with freezing_generator(*FREEZE):
        for stage in STAGES:
            run = folder / f"run{stage}"
            log = io.StringIO()
            with redirect_stdout(log):
                train(config(folder, run_dir=run, **settings(folder, stage)), joined())
            if rank == 0:
                (run / "log.txt").write_text(log.getvalue())
            dist.barrier()


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_written_has_the_frozen_weights_of_the_start(runs: Path, stage: int):
    run, start = runs / f"run{stage}", runs / "start"
    final = assert_trained_in_part(run / "generator", start)
    assert_trained_in_part(run / "snapshots" / "000000000016", start)
    assert_close(final, load_network(runs / "run0" / "generator").state)
    checkpoint = run / "checkpoints" / "latest"
    manifest = read_manifest(checkpoint)
    for kind in ("master", "ema", "exp_avg"):
        with opened(checkpoint, manifest.of("generator", kind)) as slices:
            assert not any(map(frozen, slices.parameters()))
    with opened(checkpoint, manifest.of("fake_score", "master")) as slices:
        assert any(map(frozen, slices.parameters()))


@pytest.mark.parametrize("stage", STAGES)
def test_consolidation_reads_them_from_the_start(runs: Path, stage: int, tmp_path: Path):
    run = runs / f"run{stage}"
    assert main(["consolidate", f"{run}/checkpoints/latest", f"{tmp_path}", "--role", "all"]) == 0
    published = load_network(run / "generator")
    average = load_network(tmp_path / "generator_ema")
    assert average.provenance == published.provenance
    assert all(torch.equal(published.state[n], value) for n, value in average.state.items())
    assert_trained_in_part(tmp_path / "generator", runs / "start")
    teacher = load_network(runs / "teacher").state
    fake_score = load_network(tmp_path / "fake_score").state
    moved = [not torch.equal(value, teacher[name]) for name, value in fake_score.items()]
    assert sum(moved) > 0.8 * len(moved)


def test_half_precision_rounds_them_once(runs: Path, tmp_path: Path):
    checkpoint = runs / "run2" / "checkpoints" / "latest"
    consolidate(checkpoint, "generator", "ema", tmp_path / "half", torch.bfloat16)
    start, half = load_network(runs / "start").state, load_network(tmp_path / "half").state
    for name in filter(frozen, half):
        assert torch.equal(half[name], start[name].bfloat16())


@pytest.mark.faults
def test_a_start_that_is_gone_or_another_is_asked_for(runs: Path, tmp_path: Path, capsys):
    checkpoint = shutil.copytree((runs / "run1/checkpoints/latest").resolve(), tmp_path / "last")
    state = read_state(checkpoint)
    assert state["frozen"]["generator"]["start"] == str(runs / "start")
    assert "fake_score" not in state["frozen"]
    assert state["compatibility"]["roles"]["fake_score"] == {"forced_norm": False}
    moved = tmp_path / "moved"
    (runs / "start").rename(moved)
    command = ["consolidate", str(checkpoint), str(tmp_path / "out"), "--role", "all"]
    try:
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: checkpoint {checkpoint}: its generator has frozen weights")
        assert f"{runs}/start/model.safetensors cannot be read (No such file" in error
        assert f"name a copy of {runs}/start with --start FOLDER" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert main([*command, "--start", str(runs / "teacher")]) == 1
        assert f"{runs}/teacher holds other weights; " in capsys.readouterr().err
        given = ["--start", str(runs / "teacher"), "--start", str(moved)]
        assert main([*command, *given]) == 0
    finally:
        moved.rename(runs / "start")
    assert_trained_in_part(tmp_path / "out" / "generator", runs / "start")


def test_the_log_says_what_is_trained_and_what_that_saves(runs: Path):
    names = [name for name, _ in tiny_folder().build().named_parameters()]
    sizes = {n: tiny_folder().state[n].numel() for n in names if not n.startswith("logvar")}
    total, still = sum(sizes.values()), sum(n for name, n in sizes.items() if frozen(name))
    # Master, two moments and average are shared at stages 1 to 3, gradients at stages 2 and 3.
    for stage, nbytes in {0: 20, 1: 16 / 2 + 4, 2: 20 / 2, 3: 20 / 2}.items():
        lines = (runs / f"run{stage}" / "log.txt").read_text().splitlines()
        assert [line for line in lines if "are trained" in line] == [
            f"generator: {total - still:,} of {total:,} parameters are trained "
            f"({(total - still) / total:.1%}); the others stay as {runs}/start has them, which "
            f"saves {still * nbytes / 1e9:.3g} GB on each GPU"
        ]


def test_a_resumed_run_is_the_same_run(runs: Path, tmp_path: Path):
    """Also where the checkpoint is of another number of ranks and another stage: its state is then
    the same, and what follows is summed in another order."""
    run_ranks(2, _resumed, runs, tmp_path)
    run_ranks(1, _moved, runs, tmp_path)


def _resumed(rank: int, folder: Path, out: Path) -> None:
    with freezing_generator(*reversed(FREEZE)):
        for stage in STAGES:
            first = folder / f"run{stage}" / "checkpoints" / "000000000016"
            given = settings(folder, stage, run_dir=out / f"run{stage}", resume=first)
            train(config(folder, **given), joined())
            dist.barrier()
            whole = load_network(folder / f"run{stage}" / "generator").state
            state = assert_trained_in_part(out / f"run{stage}" / "generator", folder / "start")
            assert all(torch.equal(value, whole[name]) for name, value in state.items())


def _moved(rank: int, folder: Path, out: Path) -> None:
    with freezing_generator(*FREEZE):
        for stage, other in ((2, 3), (3, 0)):
            first = folder / f"run{stage}" / "checkpoints" / "000000000016"
            given = settings(folder, other, run_dir=out / f"moved{stage}", resume=first)
            train(config(folder, **given), joined())
            state = assert_trained_in_part(out / f"moved{stage}" / "generator", folder / "start")
            assert_close(state, load_network(folder / f"run{stage}" / "generator").state)


@pytest.mark.faults
def test_another_choice_or_start_is_another_run(runs: Path, tmp_path: Path):
    save_network(tmp_path / "other", tiny_folder(4))
    run_ranks(1, _others, runs, tmp_path)


def _others(rank: int, folder: Path, out: Path) -> None:
    first = folder / "run2" / "checkpoints" / "000000000016"
    given = settings(folder, 2, run_dir=out / "run", resume=first)
    for freeze, more, message in (
        (("skip",), {}, r"roles\.generator\.freeze: \('convolutions', .*\) -> \('skip',\)"),
        ((), {}, r"roles\.generator\.freeze: \('convolutions', .*\) -> None"),
        (FREEZE, {"generator_init": out / "other"}, r"roles\.generator\.frozen_from: \w+ -> \w+"),
        (FREEZE, {"generator_init": "null"}, r"roles\.generator\.frozen_from: \w+ -> \w+"),
    ):
        with (
            freezing_generator(*freeze),
            pytest.raises(TrainingStateError, match=f"is of another run:(?s:.*){message}"),
        ):
            train(config(folder, **{**given, **more}), joined())
    with (
        freezing_generator("conv"),
        pytest.raises(ConfigError, match=r"freeze: 'conv' .* \(convolutions, qkv, skip\)"),
    ):
        train(config(folder, **given), joined())
    assert not (out / "run").exists()
