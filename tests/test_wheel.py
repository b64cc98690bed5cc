"""What is released: it is whole, and works in a folder that holds nothing of the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.generators.tiny import tiny_generator

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

OWN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sdist and the wheel that is built from it, of a copy: a build leaves files behind."""
    place = tmp_path_factory.mktemp("released")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    for name in tracked.stdout.decode().splitlines():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():  # not deleted since
            shutil.copyfile(ROOT / name, place / "source" / name, follow_symlinks=False)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist")]
    subprocess.run([*build, str(place / "source")], check=True, capture_output=True, env=OWN)
    return sorted((place / "dist").iterdir())


@pytest.fixture(scope="module")
def installed(released: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment into which `uv pip` has installed the wheel.

    It sees the packages of this environment, but for the repository's own.
    """
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", str(place / "env")]
    subprocess.run([*install, str(released[0])], check=True, env=OWN)
    packages = next((place / "env").glob("lib/python*/site-packages"))
    # As a path alone: the .pth file of an editable installation in there is not followed.
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "env" / "bin"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    command = [str(installed / "sid-scale"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": f"{installed}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_files_of_a_release_pass_twines_check(released: list[Path]):
    assert [path.suffix for path in released] == [".whl", ".gz"]
    subprocess.run(["twine", "check", "--strict", *map(str, released)], check=True)


def test_the_version_is_that_of_pyproject_and_types_come_along(installed: Path, tmp_path: Path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(installed, tmp_path, "--version") == f"sid-scale {version}\n"
    assert next(installed.parent.glob("lib/python*/site-packages/sid_scale/py.typed")).is_file()


def test_uv_runs_it_as_a_tool(released: list[Path], tmp_path: Path):
    """Its dependencies are left out: they are gigabytes, and `--version` needs none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", wanted)[0] for wanted in project["dependencies"]]
    (tmp_path / "none").write_text("".join(f"{n} ; sys_platform == 'never'\n" for n in names))
    tool = ["uv", "tool", "run", "--from", str(released[0]), "sid-scale", "--version"]
    environment = {**OWN, "UV_OVERRIDE": str(tmp_path / "none")}
    told = subprocess.run(tool, check=True, capture_output=True, text=True, env=environment).stdout
    assert told == f"sid-scale {project['version']}\n"


def test_the_citation_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "references"} <= set(citation)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    papers = {paper["url"] for paper in citation["references"]}
    assert papers == set(project["urls"].values())
    assert citation["license"] == project["license"]


def test_the_package_is_the_wheels(installed: Path, tmp_path: Path):
    code = "import sid_scale; print(sid_scale.__file__)"
    command = [str(installed / "python"), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={})
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_presets_are_listed(installed: Path, tmp_path: Path):
    lines = run(installed, tmp_path, "presets").splitlines()
    assert any(line.startswith("edm2-img512-xxl-sid2a") for line in lines)
    assert any(line.startswith("digits ") for line in lines)


def test_memory_is_estimated_with_presets_and_deepspeed_jsons_by_name(
    installed: Path, tmp_path: Path
):
    place = ["--config", "edm2-img512-xs-sida", "--nodes", "1"]
    assert "ZeRO 3, bfloat16" in run(installed, tmp_path, "memory", *place, "deepspeed=zero3")
    assert "batch 64 = micro-batch 32" in run(
        installed, tmp_path, "memory", "--config", "digits", "--gpus-per-node", "2"
    )


def test_images_are_generated(installed: Path, tmp_path: Path):
    generator = tiny_generator(tmp_path / "generator")
    what = ["--generator", str(generator), "--classes", "0-1", "--seeds", "0-1", "--out", "images"]
    run(installed, tmp_path, "generate", *what)
    assert len(list((tmp_path / "images").glob("*.png"))) == 4
