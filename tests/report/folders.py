"""Run folders as training and evaluation leave them, made by hand."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sid_scale.commands.report import add_arguments
from sid_scale.image_grid import write_png
from sid_scale.report.page import Look, render
from sid_scale.report.read import read_runs

CONFIG = """\
run_dir: {folder}
method: sida
steps: 1
teacher: /models/digits
data: /data/digits
total_images: 4000
evaluation: {{num: 50000}}
learning_rate: {{generator: 0.001}}
objective: {{fake_score: {{learning_rate: 0.003}}}}
"""
ENVIRONMENT = {"ranks": 2, "device": "cpu", "zero_stage": 2, "compute_dtype": "float32"}


def record(images_seen: int, **fields: Any) -> dict[str, Any]:
    """A line of metrics.jsonl: 100 images a second."""
    return {
        "images_seen": images_seen,
        "time": 1_000_000 + images_seen / 100,
        "loss/fake_score": -1.0 - images_seen / 1000,
        "images_per_second": 100.0,
        **{name.replace("__", "/"): value for name, value in fields.items()},
    }


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def write_evaluation(file: Path, kind: str = "generator", **fields: Any) -> Path:
    """A metrics.json of `sid-scale evaluate`; `network__KEY` goes into the network."""
    network = {
        "kind": kind,
        "path": str(file.parents[2] / "generator") if len(file.parents) > 2 else "",
        "sha256": "ab" * 32,
        "images_seen": 4000 if kind == "generator" else None,
        "evaluations": 1 if kind == "generator" else 63,
        "guidance": None,
    }
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        inside = name.startswith("network__")
        (network if inside else plain)[name.removeprefix("network__")] = value
    content = {
        "format_version": 1,
        "fd_pixels": 0.5,
        "num": 50000,
        "first_seed": 0,
        "repeats": {},
        "references": {"fd_pixels": {"file": "reference.npz", "sha256": "cd" * 32}},
        "detectors": {},
        "network": network,
        "settings": {},
        "seconds": 12.5,
        **plain,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_run(folder: Path) -> Path:
    """A finished run: records, an evaluation in training, pictures, two networks judged."""
    write_records(
        folder,
        [record(n, **({"evaluation__fd_pixels": 2000 / n} if n % 2000 == 0 else {}))
         for n in range(500, 4001, 500)],
    )  # fmt: skip
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "samples").mkdir()
    for images_seen in range(0, 4001, 500):
        picture = torch.full((3, 24, 24), images_seen % 251, dtype=torch.uint8)
        write_png(folder / "samples" / f"{images_seen:012d}.png", picture)
    write_evaluation(folder / "evaluation" / "final" / "metrics.json", fd_pixels=0.625)
    write_evaluation(folder / "evaluation" / "teacher" / "metrics.json", "teacher", fd_pixels=0.375)
    return folder


def page_of(*folders: Path) -> str:
    """The page of runs whose generators nobody looks at."""
    runs = read_runs(folders)
    return render(runs, {run.name: Look(reason="Nobody has looked.") for run in runs})


def options(*arguments: object) -> argparse.Namespace:
    """The command line, as the command reads it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])
