"""`sid-scale import SOURCE.pkl OUT_DIR`, started as users start it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.folder import load_network
from tests.conftest import ROOT
from tests.networks.edm import published as edm
from tests.networks.edm2.published import published, settings_of, snapshot, tiny
from tests.networks.published import persistent, write
from tests.pickles.hostile import Call, dumps
from tests.programs import Done, python
from tests.tiny import ARCHITECTURE, tiny_folder

Tool = Callable[..., Done]


def alone(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python that shares nothing with this process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """The tool, run in a folder of its own."""
    return lambda *arguments: python(ROOT / "tools" / "import_edm2.py", *arguments, folder=tmp_path)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write(tmp_path / "teacher.pkl", snapshot(tiny()))


def assert_one_error(process: Done | subprocess.CompletedProcess[str], message: str) -> None:
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert message in process.stderr


def test_a_teacher_becomes_a_folder(tool: Tool, teacher: Path, tmp_path: Path):
    process = tool("teacher.pkl", "teachers/small")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("teachers/small: teacher of ")
    folder = load_network(tmp_path / "teachers" / "small")
    assert folder.architecture == ARCHITECTURE
    for name, tensor in tiny_folder().state.items():
        assert torch.equal(folder.state[name], tensor), name


def test_a_generator_with_all_that_can_be_said_of_it(tool: Tool, teacher: Path, tmp_path: Path):
    settings = ("--init-sigma", "1.5", "--steps", "2", "--method", "sid2a", "--teacher", "xs")
    process = tool("teacher.pkl", "generator", "--kind", "generator", *settings)
    assert process.returncode == 0, process.stderr
    provenance = load_network(tmp_path / "generator").provenance
    said = {
        key: provenance[key]
        for key in ("kind", "init_sigma", "steps", "method", "teacher", "source")
    }
    assert said == {
        "kind": "generator",
        "init_sigma": 1.5,
        "steps": 2,
        "method": "sid2a",
        "teacher": "xs",
        "source": "teacher.pkl",
    }


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("edm-cifar10-32x32-cond-vp.pkl", edm.snapshot(edm.tiny())),
        ("edm2-img64-s-1073741-0.075.pkl", snapshot(tiny(), persistent("StandardRGBEncoder"))),
        ("edm2-img64-s-ddo.pkl", {"ema": tiny()}),
    ],
)
def test_a_teacher_of_pixels(tool: Tool, tmp_path: Path, name: str, contents):
    write(tmp_path / name, contents)
    process = tool(name, "teacher")
    assert process.stdout.startswith("teacher: teacher of "), process.stderr
    folder = load_network(tmp_path / "teacher")
    assert folder.codec == {"kind": "identity"}
    assert folder.provenance["source"] == name


def test_the_teacher_of_latents_that_ddo_publishes(tool: Tool, tmp_path: Path):
    architecture = EDM2Architecture(8, 4, 4, 16, (1, 2), 1, (4,), 16, 16)
    made = published(architecture, EDM2(architecture).state_dict(), **settings_of(architecture))
    write(tmp_path / "edm2-img512-l-ddo.pkl", {"ema": made})
    process = tool("edm2-img512-l-ddo.pkl", "teacher", "--vae", "vae")
    assert process.stdout.startswith("teacher: teacher of "), process.stderr
    assert load_network(tmp_path / "teacher").codec["kind"] == "vae"


def test_the_vae_is_found_again_from_anywhere(tool: Tool, tmp_path: Path):
    architecture = EDM2Architecture(8, 4, 4, 16, (1, 2), 1, (4,), 16, 16)
    made = published(architecture, EDM2(architecture).state_dict(), **settings_of(architecture))
    write(tmp_path / "latent.pkl", snapshot(made))
    (tmp_path / "models" / "vae").mkdir(parents=True)  # else it would be a name on the hub
    assert tool("latent.pkl", "latent", "--vae", "models/vae").returncode == 0
    codec = load_network(tmp_path / "latent").codec
    assert codec["vae"] == str(tmp_path / "models" / "vae")


def test_a_network_alone_in_its_file_is_a_generator_unless_said_otherwise(
    tool: Tool, tmp_path: Path
):
    write(tmp_path / "alone.pkl", {"ema": tiny()})
    process = tool("alone.pkl", "found")
    assert process.stdout.startswith("found: generator of "), process.stderr
    process = tool("alone.pkl", "said", "--kind", "teacher")
    assert process.stdout.startswith("said: teacher of "), process.stderr


@pytest.mark.faults
def test_a_hostile_file_is_one_error_and_no_folder(tool: Tool, tmp_path: Path):
    canary = tmp_path / "canary"
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(dumps({"ema": Call(os.system, f"touch {canary}")}))
    size = hostile.stat().st_size  # the place is the end of the frame, here of the file
    process = tool("hostile.pkl", "out")
    assert_one_error(process, f"hostile.pkl: before byte {size}: asks for 'posix.system'")
    assert sorted(tmp_path.iterdir()) == [hostile]


@pytest.mark.faults
def test_an_existing_folder_is_left_alone(tool: Tool, teacher: Path, tmp_path: Path):
    assert_one_error(tool("teacher.pkl", "."), "exists already")
    assert list(tmp_path.iterdir()) == [teacher]


@pytest.mark.faults
def test_a_folder_that_cannot_be_made_is_one_error(tool: Tool, teacher: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert_one_error(tool("teacher.pkl", "file/out"), "file")


@pytest.mark.faults
def test_a_full_disk_is_one_error_and_leaves_nothing(teacher: Path, tmp_path: Path):
    process = alone("-c", LIMITED, "teacher.pkl", "out", cwd=tmp_path)
    assert_one_error(process, "cannot be written: File too large")
    assert list(tmp_path.iterdir()) == [teacher]


LIMITED = """
import resource, sys
from sid_scale.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes; the weights are more
sys.exit(main(["import", *sys.argv[1:]]))
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("teacher.pkl",),
        ("teacher.pkl", "out", "--steps", "3"),
        ("teacher.pkl", "out", "--init-sigma", "-1"),
        ("teacher.pkl", "out", "--method", "none"),
        ("teacher.pkl", "out", "--kind", "vae"),
    ],
)
def test_wrong_use_exits_with_2(tool: Tool, teacher: Path, tmp_path: Path, arguments):
    process = tool(*arguments)
    assert process.returncode == 2
    assert "usage: sid-scale import" in process.stderr
    assert list(tmp_path.iterdir()) == [teacher]


# --- memory -------------------------------------------------------------------------------

# The process that reads the pickle is started by way of one that measures it.
MEASURED = """
import json, subprocess, sys
from sid_scale.cli import main
import sid_scale.networks.published
from tests.pickles.hostile_judge import peak_memory

measuring = '''
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)  # KiB
sys.exit(status)
'''
run = subprocess.run
together = []  # peaks of both, when the reading process ends


def measured_run(command, **options):
    command = [sys.executable, "-c", measuring, *command]
    done = run(command, **options)
    together.append(int(done.stderr) * 1024 + peak_memory() - before)
    return done


subprocess.run = measured_run
before = peak_memory()
status = main(["import", *sys.argv[1:]])
print(json.dumps([status, *together, peak_memory() - before]))
"""
MEGA = 10**6


@pytest.mark.parametrize(
    ("dtype", "protocol"),
    [(torch.float32, 4), (torch.float16, 4), (torch.float16, 2)],
)
def test_memory_stays_within_2_2_times_the_weights(tmp_path: Path, dtype, protocol):
    channels = 80 if dtype == torch.float32 else 112  # either is some 200 MB
    architecture = EDM2Architecture(64, 4, 1000, channels)
    state = {name: tensor.to(dtype) for name, tensor in EDM2(architecture).state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert 180 * MEGA < size < 220 * MEGA
    made = published(architecture, state, **settings_of(architecture))
    source = write(tmp_path / "large.pkl", {"ema": made}, protocol)
    process = alone("-c", MEASURED, source, tmp_path / "out")
    assert process.returncode == 0, process.stderr
    status, reading, writing = json.loads(process.stdout.splitlines()[-1])
    assert status == 0
    assert size < reading < 2.2 * size
    assert size < writing < 2.2 * size
