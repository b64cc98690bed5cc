"""The process that reads a pickle can do nothing else."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.faults


def confined(action: str) -> subprocess.CompletedProcess[str]:
    """Python with the limits for a file of no bytes, then an action."""
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from sid_scale.pickles.process import confine

code = compile("1", "", "eval")
confine(0)
{action}
os.write(1, b"done")
os._exit(0)
"""
    command = [sys.executable, "-I", "-S", "-c", program]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("action", "event"),
    [
        ("import antigravity", "import"),
        ("eval('1')", "compile"),
        ("eval(code)", "exec"),
        ("os.system('true')", "os.system"),
        ("os.fork()", "os.fork"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "os.posix_spawn"),
        ("open('/dev/null')", "open"),
        ("os.remove('/nowhere')", "os.remove"),
        ("sys._getframe()", "sys._getframe"),
    ],
)
def test_python_ends_before_it_does_anything(action: str, event: str):
    process = confined(action)
    assert process.returncode == 1
    assert process.stdout.startswith(f"tries to use Python ({event})")


def test_memory_ends():
    assert "MemoryError" in confined("bytes(2**30)").stderr


def test_plain_computing_goes_on():
    assert confined("sorted({str(n): n for n in range(1000)})").stdout == "done"
