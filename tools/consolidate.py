"""Makes network folders of a checkpoint: `python tools/consolidate.py CHECKPOINT OUT_DIR --role R`.

CHECKPOINT is a folder such as RUN/checkpoints/000000016384 or RUN/checkpoints/latest. Runs on
a login node: no GPU, no ranks, memory for little more than the largest tensor.

    generator_ema   the averaged generator: what the run evaluates and publishes
    generator       the generator's weights of the moment
    fake_score      the fake score's, with its uncertainty head
    all             all three, as OUT_DIR/generator_ema, OUT_DIR/generator, OUT_DIR/fake_score
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from sid_scale.distill.consolidate import consolidate
from sid_scale.errors import SidScaleError

ROLES = {
    "generator_ema": ("generator", "ema"),
    "generator": ("generator", "master"),
    "fake_score": ("fake_score", "master"),
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def main() -> int:
    """Runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder")
    parser.add_argument("out_dir", type=Path, help="network folder to write")
    parser.add_argument("--role", required=True, choices=[*ROLES, "all"])
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="default: float32")
    options = parser.parse_args()
    roles = list(ROLES) if options.role == "all" else [options.role]
    new = first_missing(options.out_dir)
    try:
        for role in roles:
            out = options.out_dir / role if options.role == "all" else options.out_dir
            consolidate(options.checkpoint, *ROLES[role], out, DTYPES[options.dtype])
            print(f"{role}: {out}")
    except (SidScaleError, OSError) as error:
        if new is not None and new.exists():
            shutil.rmtree(new)  # all of what was asked for, or nothing
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def first_missing(folder: Path) -> Path | None:
    """The outermost folder that has to be made for this one to exist; None: it exists."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


if __name__ == "__main__":
    sys.exit(main())
