"""The arguments of tools/demo.sh."""

import subprocess

import pytest

from sid_scale.config.run import preset_names
from tests.conftest import ROOT


@pytest.mark.parametrize("arguments", [["--preset"], ["--preset", "edm2"], ["--long"]])
def test_what_the_demo_does_not_know_is_refused_with_its_usage(arguments: list[str]):
    ended = subprocess.run(
        ["bash", str(ROOT / "tools" / "demo.sh"), *arguments], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "usage: bash tools/demo.sh [--preset NAME] [--full | --short]; presets: "
    )
    known = {name for name in preset_names() if name.startswith("digits")}
    assert set(ended.stderr.partition("presets: ")[2].split()) == known
