"""Python programs in processes of their own, forked with their imports done."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.launches import PATIENCE
from tests.ranks import PRELOADED


class Done(NamedTuple):
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def python(*words: object, folder: Path | None = None, **environment: str) -> Done:
    """`python WORDS...`, which are `-m MODULE` or a file, and arguments.

    Args:
        folder: that it runs in; None: this one.
        environment: in addition to this process's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    place = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory() as said:
        arguments = (list(map(str, words)), folder or Path.cwd(), place, Path(said))
        process = context.Process(target=_program, args=arguments)
        process.start()
        process.join(PATIENCE)
        status = process.exitcode
        process.kill()
        process.join()
        stdout, stderr = ((Path(said) / name).read_text() for name in ("1", "2"))
    assert status is not None, f"{words} hangs:\n{stdout}{stderr}"
    return Done(status, stdout, stderr)


def _program(words: list[str], folder: Path, place: Mapping[str, str], said: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(place)
    for stream in (1, 2):
        os.dup2(os.open(said / str(stream), os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
