"""The pages: they are a site, and what they print for a shell works."""

import argparse
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sid_scale.cli import COMMANDS
from sid_scale.config.run import load_config, preset_names
from tests.conftest import ROOT
from tests.docs.pages import (
    CI_RUNS,
    LANGUAGES,
    MARKS,
    PAGES,
    Block,
    blocks,
    commands,
    product_words,
    run_settings,
)
from tests.ranks import free_port

BLOCKS = blocks()
RUN = [block for block in BLOCKS if not block.mark and not block.text.startswith(CI_RUNS)]
SETUP = """
python -m sid_scale.demo prepare runs/demo
deepspeed --num_gpus 1 --module sid_scale.train --config digits-latents-gdd run_dir=runs/demo \
    batch_size=64 total_images=128 snapshot.every_images=64
"""


def test_the_pages_are_a_site_without_broken_links(tmp_path: Path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert "from_pretrained" in (tmp_path / "site" / "api" / "index.html").read_text()


def test_the_site_fetches_nothing_from_elsewhere(tmp_path: Path):
    """Fonts and scripts are the site's own: it reads the same without a network."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "extra_javascript" not in settings


def test_no_command_hides_in_a_block_of_another_kind():
    """All fences begin a line and name a language; a shell's has one name."""
    seen = sum(len(blocks(language)) for language in LANGUAGES)
    fences = [line for page in PAGES for line in page.read_text().splitlines() if "```" in line]
    assert 2 * seen == len(fences)
    for block in blocks("text"):
        assert not block.text.startswith(("$", "sid-scale", "pip", "python", "bash"))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_command_is_run_by_a_test_or_tells_what_it_needs(block: Block):
    assert block.mark in MARKS or not block.mark
    if not block.mark and block not in RUN:
        script = next(start for start in CI_RUNS if block.text.startswith(start))
        runs = [ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]
        assert any(script in path.read_text() for path in runs)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "sid" in b.text], ids=str)
def test_options_and_settings_are_known(block: Block):
    for words in commands(block):
        if (given := product_words(words)) is not None:
            assert_parses(given)
        if (given := run_settings(words)) is not None and given[0] in preset_names():
            load_config(given[0], given[1:])


def assert_parses(given: list[str]) -> None:
    """The command's parser takes these arguments."""
    if given == ["--help"]:
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(COMMANDS[given[0]][0]).add_arguments(parser)
    try:
        parser.parse_args(given[1:])
    except SystemExit:
        pytest.fail(f"sid-scale refuses {' '.join(given)}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's folder as a reader has it after the demo, which here was a short one."""
    place = tmp_path_factory.mktemp("pages")
    for name in ("docs", "slurm", "tools", "sid_scale", "tests", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    run_in(place, SETUP)
    return place


@pytest.mark.distributed
@pytest.mark.parametrize("block", RUN, ids=str)
def test_what_needs_nothing_runs_as_printed(block: Block, place: Path):
    run_in(place, block.text)


@pytest.mark.distributed
def test_python_that_uses_the_demos_generator_runs_as_printed(place: Path):
    python = [block.text for block in blocks("python") if "runs/demo/" in block.text]
    assert len(python) > 1
    run_in(
        place, f"python - <<'END'\n{chr(10).join(python)}\nassert images.shape[:2] == (2, 3)\nEND"
    )


def run_in(place: Path, script: str) -> None:
    """Runs a script by bash, which ends at the first command that fails; ports are free ones."""
    script = script.replace("deepspeed --num", f"deepspeed --master_port {free_port()} --num")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
