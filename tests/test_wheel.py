"""The package works from a wheel, in a folder that holds nothing of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.generators.tiny import tiny_generator


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment into which the wheel is installed.

    It sees the packages of this environment, but for the repository's own.
    """
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = place / "source"  # a build leaves files beside what it builds
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for name in ("sid_scale", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source)]
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*pip, *build], check=True, capture_output=True, env=without)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    python = place / "env" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", *map(str, place.glob("*.whl"))]
    subprocess.run([*pip, *install], check=True, capture_output=True, env=without)
    packages = next((place / "env").glob("lib/python*/site-packages"))
    # As a path alone: the .pth file of an editable installation in there is not followed.
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


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
