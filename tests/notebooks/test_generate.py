"""docs/notebooks/generate.ipynb: run in a copy of the repository's folders, and stored clean."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from tests.conftest import ROOT
from tests.generators.tiny import demo_generator, save_generator
from tests.tiny import ARCHITECTURE, tiny_folder

NOTEBOOK = Path("docs") / "notebooks" / "generate.ipynb"
SECONDS = 600  # for a cell, and for a kernel to start; on a busy machine too
# Sockets in the folder JUPYTER_RUNTIME_DIR: another process might take a port before the kernel.
IN_A_FOLDER = Config(KernelManager={"transport": "ipc"})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like the repository to the notebook; the kernel finds sid_scale."""
    folder = tmp_path / "repository"
    (folder / NOTEBOOK.parent).mkdir(parents=True)
    (folder / "tools").mkdir()
    (folder / "tools" / "demo.sh").touch()
    with TemporaryDirectory() as sockets:  # whose names have to be short
        for name, value in {
            "PYTHONPATH": ROOT,
            "IPYTHONDIR": tmp_path / "ipython",
            "JUPYTER_RUNTIME_DIR": sockets,
        }.items():
            monkeypatch.setenv(name, str(value))
        yield folder


def execute(repository: Path, **settings: Any) -> str:
    """What the notebook prints, with other settings; a picture becomes a line `image`."""
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    [at] = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    cell = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(cell))
    resources = {"metadata": {"path": str(repository / NOTEBOOK.parent)}}
    patience = {"timeout": SECONDS, "startup_timeout": SECONDS}
    place = {"kernel_name": "python3", "config": IN_A_FOLDER, "resources": resources}
    NotebookClient(notebook, **place, **patience).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(
        "image\n" if "image/png" in output.get("data", {}) else output.get("text", "")
        for output in outputs
    )


def test_it_finds_the_demos_generator_and_shows_its_images(repository: Path):
    demo_generator(repository / "runs" / "demo" / "generator")
    printed = execute(repository, SEEDS=[0, 1, 2])
    assert f"{repository}/runs/demo/generator: " in printed
    assert "10 classes, 1 step(s)" in printed
    assert printed.count("image\n") == 3
    assert "bfloat16: " in printed
    assert "Warning" not in printed


def test_any_other_generator_will_do_also_without_classes(repository: Path, tmp_path: Path):
    network = tiny_folder(architecture=dataclasses.replace(ARCHITECTURE, label_dim=0))
    folder = save_generator(tmp_path / "elsewhere", network, steps=2)
    printed = execute(repository, GENERATOR=str(folder), SEEDS=[5, 6])
    assert "0 classes, 2 step(s)" in printed
    assert printed.count("image\n") == 3


def test_without_a_generator_it_says_what_to_do(repository: Path):
    with pytest.raises(CellExecutionError) as failed:
        execute(repository)
    assert failed.value.ename == "SystemExit"
    assert "run `bash tools/demo.sh` in the repository" in failed.value.evalue
    assert str(repository / "runs" / "demo" / "generator") in failed.value.evalue


def test_without_sid_scale_it_says_which_kernel_has_it(repository: Path):
    with pytest.raises(CellExecutionError) as failed:
        execute(repository, **{"__import__('sys').modules['sid_scale']": None})
    assert failed.value.ename == "SystemExit"
    assert "choose the Python of .venv" in failed.value.evalue


def test_it_is_stored_without_outputs():
    for cell in json.loads((ROOT / NOTEBOOK).read_text())["cells"]:
        assert not cell.get("outputs"), cell["source"]
        assert cell.get("execution_count") is None, cell["source"]
