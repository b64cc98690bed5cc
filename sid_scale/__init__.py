"""Distils EDM and EDM2 diffusion teachers into one-step generators.

from sid_scale import OneStepGenerator
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sid_scale.generators.generator import OneStepGenerator

__all__ = ["OneStepGenerator"]


def __getattr__(name: str) -> Any:
    # It imports torch, which takes its time: `import sid_scale` alone should not.
    if name == "OneStepGenerator":
        from sid_scale.generators.generator import OneStepGenerator

        return OneStepGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
