"""Imports point one way: each folder may import those that are named here, and no others."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "sid_scale"

# Modules that every other may import.
BASE = {
    "agreed_device",
    "atomic",
    "class_lists",
    "codecs",
    "common_end",
    "devices",
    "dtypes",
    "errors",
    "image_grid",
    "inputs_changed",
    "measurements",
    "metrics_log",
    "paths",
    "process_pool",
    "ranks",
    "seeding",
    "tensor_file",
    "hashing",
    "hub",
    "thread_map",
}
GROUND = {"config", "networks", "pickles", "diffusion"}
RUN = GROUND | {"methods", "data", "zero", "distill"}
# Folder or module -> what it may import, besides BASE and itself. What the package says of itself
# in design: config, networks, pickles, diffusion <- methods, data, zero <- distill <- the rest.
MAY_IMPORT = {
    **{module: {"config"} for module in BASE},  # config.parse has "did you mean"
    "config": set(),
    "pickles": set(),
    "networks": {"pickles"},
    "diffusion": {"networks"},
    "methods": {"config", "networks", "diffusion"},
    "data": {"config", "pickles"},
    "zero": {"config"},
    "generators": {"config", "networks", "diffusion"},
    "health": {"config"},
    "distill": RUN | {"generators", "health"},
    "estimate": {"config", "networks", "diffusion", "methods", "zero"},
    "jobs": {"config"},
    "evaluate": RUN | {"generators", "pickles"},
    "presets": {"config", "networks"},
    "report": RUN | {"evaluate", "generators", "jobs"},
    "demo": RUN | {"evaluate", "generators"},
    "train": RUN | {"estimate", "evaluate", "jobs", "cli"},
    "commands": RUN | {"estimate", "evaluate", "generators", "jobs", "presets", "report", "train"},
    "cli": {"commands"},
    "__init__": {"generators"},
    "__main__": {"cli"},
}
# A light module of settings belongs to its folder, but config puts all of them together.
SETTINGS = {("config", "sid_scale.methods.settings"), ("config", "sid_scale.methods")}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module of the package that a source imports, wherever."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
            if node.module == "sid_scale":
                names = [f"sid_scale.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("sid_scale."))


def violations(source: str, where: str) -> list[str]:
    """Imports of a file that its folder may not make; `where` is its path in the package."""
    here = Path(where).parts[0].removesuffix(".py")
    return [
        f"{where}:{line}: {here} may not import {name}"
        for line, name in imported(source)
        if (there := name.split(".")[1]) not in {here, *BASE, *MAY_IMPORT[here]}
        and there != "OneStepGenerator"
        and (here, name) not in SETTINGS
    ]


def test_imports_point_one_way():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += violations(path.read_text(), str(path.relative_to(PACKAGE)))
    assert not found, "\n".join(found)


def test_every_folder_has_its_place():
    parts = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()}
    assert parts - {"__pycache__", "ds_configs", "py", "py.typed"} == set(MAY_IMPORT) | BASE & parts


def test_a_broken_rule_is_named_with_file_and_line():
    source = "def run():\n    from sid_scale.networks.folder import load_network\n"
    assert violations(source, "zero/ema.py") == [
        "zero/ema.py:2: zero may not import sid_scale.networks.folder"
    ]
    assert violations(source, "distill/build.py") == []
