"""timm, torchvision and torch-fidelity, beside a torch that torchvision is not built for.

PyPI's torchvision is built for CUDA. Beside a torch for the CPU its library is not loaded, and its
import fails where it extends two operators, as does the import of all that finds it: diffusers,
transformers. `tools/install.sh` puts them into a folder of their own, out of the way of programs
that tests start. No feature network uses the operators: here they are names.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(sys.prefix, "timm")
IS_INSTALLED = find_spec("torchvision") is not None


@functools.cache
def make_timm_importable() -> Any:
    """Imports timm, wherever it is installed: after this it is there for this process.

    What is returned holds the operators: they live as long as the cache keeps it.
    """
    with _beside():
        library = _define_operators()
        import_module("timm")
    return library


def import_torch_fidelity(module: str) -> Any:
    """A module of torch-fidelity, which needs torchvision, too."""
    make_timm_importable()
    with _beside():
        return import_module(f"torch_fidelity.{module}")


@contextmanager
def _beside() -> Iterator[None]:
    """Inside, packages are found in the folder of their own, if they are in one."""
    if IS_INSTALLED:
        yield
        return
    assert FOLDER.is_dir(), f"timm is neither installed nor in {FOLDER}: run tools/test.sh"
    sys.path.append(str(FOLDER))
    try:
        yield
    finally:  # processes that this one starts may inherit the path, but no operators
        sys.path.remove(str(FOLDER))


def _define_operators() -> Any:
    """Defines the two operators where torchvision's own library cannot be loaded."""
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
