"""slurm/container.def: its %post section, on this machine as far as that goes.

A container's root and CUDA are not here. What is: a Debian, apt, and root (in CI). System packages
are really installed; so is this package, into a virtual environment, by the same pip command
without its dependencies, which are gigabytes and were installed for the tests already.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SECTIONS = dict(
    re.findall(
        r"^%(\w+)\n(.*?)(?=^%|\Z)", (ROOT / "slurm" / "container.def").read_text(), re.M | re.S
    )
)


@pytest.mark.slurm
def test_what_it_installs_runs_without_root(tmp_path: Path):
    for line in SECTIONS["files"].strip().splitlines():
        source, destination = line.split()
        target = tmp_path / Path(destination).relative_to("/opt")
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "--recursive", ROOT / source, target], check=True)
    place = tmp_path / "sid_scale"
    subprocess.run(
        ["sh", "-c", SECTIONS["post"]],
        check=True,
        capture_output=True,
        env={
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "SOURCE": str(tmp_path / "source"),
            "PLACE": str(place),
            "PIP_NO_DEPS": "1",
        },
    )
    assert SECTIONS["environment"].strip() == "export PATH=/opt/sid_scale/bin:$PATH"
    as_somebody = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
    for folder in [place, *place.parents][:-2]:
        folder.chmod(0o755)
    told = subprocess.run(
        [place / "bin" / "sid-scale", "--version"],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        env={},
        **as_somebody,
    )
    assert told.stdout.startswith("sid-scale ")
