"""torchvision, which timm needs, beside a torch that its operators are not built for.

PyPI's torchvision is built for CUDA. Beside a torch for the CPU its library is not loaded, and its
import fails where it extends two operators. No feature network uses them: here they are names.
"""

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


@functools.cache
def make_timm_importable() -> Any:
    """Defines the two operators where torchvision's own library cannot be loaded.

    The cache keeps what is returned: the operators live as long as it does.
    """
    spec = find_spec("torchvision")
    assert spec is not None, "timm and torchvision are not installed: see CONTRIBUTING.md"
    assert spec.origin is not None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
