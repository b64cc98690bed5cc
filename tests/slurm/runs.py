"""Runs as a user of the cluster submits them, and the same without SLURM."""

import json
import sys
from pathlib import Path

import yaml

from sid_scale.config.parse import apply_override
from sid_scale.config.run import load_config
from sid_scale.distill.loop import train
from tests.conftest import ROOT
from tests.ranks import joined
from tests.slurm.cluster import Cluster
from tests.tiny import prepare, settings

SCRIPT = str(ROOT / "slurm" / "distill.sbatch")
ENDLESS = 10**9


def distil(cluster: Cluster, run: Path, *options: str, **environment: str) -> int:
    """Submits a run (a YAML file) on two nodes with one rank each; returns the job's id."""
    place = [
        "--gpus-per-node=1",
        "--oversubscribe",
        f"--output={run.parent}/%j.out",
        f"--chdir={run.parent}",
    ]
    return cluster.submit(*place, *options, SCRIPT, str(run), **environment)


def programs(folder: Path, deepspeed: str = "", before_python: str = "") -> Path:
    """A virtual environment of these programs, as lines of shell; returns its folder."""
    bin = folder / "bin"
    bin.mkdir(parents=True)
    lines = {"python": f'{before_python}\nexec {sys.executable} "$@"', "deepspeed": deepspeed}
    for name, line in lines.items():
        (bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin / name).chmod(0o755)
    return folder


def write_run(path: Path, **values: object) -> Path:
    """A run's YAML; written again while its job is queued, it is what the next start reads."""
    path.write_text(
        yaml.safe_dump({k: str(v) if isinstance(v, Path) else v for k, v in values.items()})
    )
    return path


def records(run: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []  # not yet, or half a line


def losses(run: Path) -> list[dict]:
    told = ("images_seen", "skipped_updates", "loss/", "logits/", "grad_norm/", "sid_loss")
    return [{k: v for k, v in record.items() if k.startswith(told)} for record in records(run)]


def seen(run: Path) -> int:
    return records(run)[-1]["images_seen"] if records(run) else 0


def tiny_run(folder: Path, **overrides: object) -> tuple[Path, dict]:
    """A run of tiny networks that ends when its YAML is told to; slow, for its many checkpoints."""
    prepare(folder)
    groups: dict = {}
    for entry in settings(folder):
        apply_override(groups, entry)
    groups["checkpoint"] = {"every_images": 8, "keep": 2}
    groups["log"] = {"every_images": 8, "samples_every_images": 0}
    groups |= {"total_images": ENDLESS, "dropout": 0.1, "collective_timeout_seconds": 120}
    groups |= overrides
    return write_run(folder / "run.yaml", **groups), groups


def let_it_end(run: Path, values: dict, images: int = 40) -> int:
    """Has the run end `images` after what it has seen by now; returns where that is."""
    total = seen(Path(values["run_dir"])) // 8 * 8 + images
    write_run(run, **{**values, "total_images": total})
    return total


def in_process(rank: int, run: Path, run_dir: Path) -> None:
    """The same run without SLURM, on ranks of the test's own; one checkpoint, at its end."""
    config = load_config(run, [f"run_dir={run_dir}", f"checkpoint.every_images={ENDLESS}"])
    train(config, joined())
