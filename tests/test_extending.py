"""docs/extending.md: its toy method distils its toy network, as printed, without a change in the
package."""

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.cli import main
from sid_scale.config.parse import ConfigError
from sid_scale.distill.build import build_run
from sid_scale.distill.loop import train
from sid_scale.methods import METHODS
from sid_scale.methods.settings import OBJECTIVES
from sid_scale.networks import FAMILIES, architecture_from, describe_architecture
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from sid_scale.ranks import Ranks
from tests.conftest import ROOT
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare

pytestmark = pytest.mark.distributed
PAGE = ROOT / "docs" / "extending.md"


def load_examples(folder: Path) -> None:
    """Imports the page's Python blocks, each as the file that its first line names."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        name = re.match(r"# (\w+)\.py\n", block)[1]
        path = folder / f"{name}-{dist.get_rank() if dist.is_initialized() else 'alone'}.py"
        path.write_text(block)
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What the examples register is gone when a test ends."""
    before = [(registry, dict(registry)) for registry in (OBJECTIVES, METHODS, FAMILIES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def toy_teacher(folder: Path) -> Path:
    description = {"family": "toy", "resolution": 8, "channels": 3, "label_dim": 4}
    architecture = architecture_from(description)
    torch.manual_seed(0)
    state = architecture.build().state_dict()
    save_network(folder, NetworkFolder(architecture, state))
    return folder


RUN = {"method": "pull", "data": "null", "total_images": 16, "objective.p_std": 0.5}


def settings(**changed: object) -> dict[str, object]:
    return {**RUN, **changed}


def test_the_toy_method_distils_the_toy_network_at_zero_2_and_3(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _distil, tmp_path)


def _distil(rank: int, folder: Path) -> None:
    load_examples(folder)
    if rank == 0:
        toy_teacher(folder / "toy")
    dist.barrier()
    here = joined()
    ends = []
    for stage in (2, 3):
        run = folder / f"run{stage}"
        given = {"teacher": folder / "toy", "deepspeed": folder / f"stage{stage}.json"}
        train(config(folder, warm_up=False, run_dir=run, **settings(**given)), here)
        dist.barrier()
        teacher, generator = load_network(folder / "toy"), load_network(run / "generator")
        assert generator.architecture == teacher.architecture
        moved = generator.state["encode.weight"] - teacher.state["encode.weight"]
        assert 1e-6 < moved.abs().max() < 1e-3
        ends.append(generator.state)
        if rank == 0:
            assert '"loss/pull"' in (run / "metrics.jsonl").read_text()
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name])
    if rank == 0:
        checkpoint = folder / "run3" / "checkpoints" / "latest"
        out = folder / "consolidated"
        assert main(["consolidate", str(checkpoint), str(out), "--role", "generator_ema"]) == 0
        assert torch.equal(load_network(out).state["encode.weight"], ends[1]["encode.weight"])


def test_its_settings_are_checked_and_its_memory_is_estimated(tmp_path: Path, capsys):
    load_examples(tmp_path)
    prepare(tmp_path)
    given = settings(teacher=toy_teacher(tmp_path / "toy"))
    with pytest.raises(ConfigError, match=r"objective\.p_sdt; did you mean 'p_std'"):
        config(tmp_path, warm_up=False, **{**given, "objective.p_sdt": 1})
    run = config(tmp_path, warm_up=False, **given)
    assert run.objective.p_std == 0.5
    lines = [f"{key}={value}" for key, value in given.items()]
    place = [f"run_dir={tmp_path}/r", f"deepspeed={tmp_path}/stage2.json"]
    size = ["batch_size=8", "micro_batch=4"]
    config_file = ["--config", str(tmp_path / "run.yaml"), "--gpus-per-node", "2"]
    assert main(["memory", *config_file, *lines, *place, *size]) == 0
    assert "GB of 80: fits" in capsys.readouterr().out


def test_a_method_that_reads_real_images_asks_for_data(tmp_path: Path, monkeypatch):
    load_examples(tmp_path)
    prepare(tmp_path)
    toy = METHODS["pull"]
    (role,) = toy.roles(toy(config(tmp_path, warm_up=False, **RUN), None))
    reading = dataclasses.replace(role, reads_real=True)
    monkeypatch.setattr(toy, "roles", lambda method: (reading,))
    run = config(tmp_path, warm_up=False, **settings(teacher=toy_teacher(tmp_path / "toy")))
    with pytest.raises(ConfigError, match="method pull learns from real data: set data"):
        build_run(run, Ranks(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (
            {"fake_score": "keep"},
            r"key activations\.fake_score; .* of method pull are: generator, t",
        ),
        ({"generator": "checkpoint"}, r"activations\.generator: Toy has no blocks to checkpoint"),
        ({"teacher": [8]}, r"activations\.teacher: Toy has no blocks to checkpoint; use keep"),
    ],
)
def test_activations_are_those_of_its_networks(tmp_path: Path, activations, message: str):
    load_examples(tmp_path)
    prepare(tmp_path)
    given = settings(teacher=toy_teacher(tmp_path / "toy"), activations=activations)
    run = config(tmp_path, warm_up=False, **given)
    with pytest.raises(ConfigError, match=message):
        build_run(run, Ranks(0, 1, torch.device("cpu")))


def test_a_family_is_found_by_its_name(tmp_path: Path):
    load_examples(tmp_path)
    network = load_network(toy_teacher(tmp_path / "toy"))
    assert describe_architecture(network.architecture)["family"] == "toy"
    with pytest.raises(ValueError, match="family 'other' is none of edm2, edm, toy"):
        architecture_from({"family": "other"})
