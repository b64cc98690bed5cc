"""Makes network folders of a checkpoint: `sid-scale consolidate CHECKPOINT OUT_DIR --role ROLE`.

CHECKPOINT is a folder such as RUN/checkpoints/000000016384 or RUN/checkpoints/latest. Runs on
a login node: no GPU, no ranks, memory for little more than the largest tensor.

    generator_ema   the averaged generator: what the run evaluates and publishes
    generator       the generator's weights of the moment
    ROLE            another copy of the teacher that the method trains, such as fake_score
    all             all of them, as OUT_DIR/generator_ema, OUT_DIR/generator, ...

A checkpoint does not hold weights that stayed frozen. They are read from the folder that the run
started from (its teacher, or generator_init), by the path that it had then, or from one that
--start names.
"""

import argparse
import shutil
from pathlib import Path

from sid_scale.commands.arguments import network, path
from sid_scale.dtypes import COMPUTE
from sid_scale.errors import UsageError

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path, help="a checkpoint's folder")
    parser.add_argument("out_dir", type=path, help="network folder to write")
    parser.add_argument("--role", required=True, metavar="ROLE", help="see above")
    parser.add_argument("--dtype", default="float32", choices=COMPUTE, help="default: float32")
    parser.add_argument(
        "--start", type=network, action="append", default=[], metavar="FOLDER",
        help="network folder that the run started from, or its name on the hub, if it is elsewhere "
        "by now",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from sid_scale.distill.consolidate import consolidate, networks_in
    from sid_scale.dtypes import torch_dtype
    from sid_scale.hub.folders import fill_options

    fill_options(options)
    checkpoint = options.checkpoint.resolve()  # `latest` may be another one in a minute
    found = networks_in(checkpoint)
    if options.role not in (*found, ALL):
        raise UsageError(
            f"--role {options.role} is not in {checkpoint}; there are {', '.join(found)}, {ALL}"
        )
    new = _first_missing(options.out_dir)
    try:
        for name in found if options.role == ALL else [options.role]:
            out = options.out_dir / name if options.role == ALL else options.out_dir
            dtype = torch_dtype(options.dtype)
            consolidate(checkpoint, *found[name], out, dtype, options.start)
            print(f"{name}: {out}")
    except Exception:
        if new is not None and new.exists():
            shutil.rmtree(new)  # all of what was asked for, or nothing
        raise
    return 0


def _first_missing(folder: Path) -> Path | None:
    """The outermost folder that has to be made for this one to exist; None: it exists."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None
