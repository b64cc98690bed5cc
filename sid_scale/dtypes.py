"""Names of dtypes in settings and on command lines. Imports torch only when asked for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMPUTE = ("float32", "bfloat16", "float16")  # what networks can compute in
STORED = ("float32", "float16")  # what shards can hold latents in


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name, one of COMPUTE."""
    import torch

    if name not in COMPUTE:
        raise ValueError(f"dtype {name!r} is none of {', '.join(COMPUTE)}")
    return getattr(torch, name)
