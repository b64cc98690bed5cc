"""`metrics.json`: what an evaluation writes and prints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sid_scale.atomic import atomic_write
from sid_scale.evaluate.blocks import BlockError
from sid_scale.evaluate.features import FDR
from sid_scale.measurements import FORMAT_VERSION, METRICS_FILE


def repeat_figures(each: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Figures of the repeats -> metric: mean, and under `repeats` all that is known of them."""
    values = {metric: [figures[metric] for figures in each] for metric in each[0]}
    repeats = {
        metric: {
            "values": v,
            "mean": fmean(v),
            "min": min(v),
            "std": stdev(v) if len(v) > 1 else 0.0,
        }
        for metric, v in values.items()
    }
    return {**{metric: r["mean"] for metric, r in repeats.items()}, "repeats": repeats}


def write_metrics(folder: Path, measured: Mapping[str, Any]) -> None:
    """Writes metrics.json.

    Raises:
        BlockError: the disk is full, the folder read-only ...
    """
    path = folder / METRICS_FILE
    try:
        with atomic_write(path) as partial:
            text = json.dumps({"format_version": FORMAT_VERSION, **measured}, indent=2)
            partial.write_text(text + "\n")
    except OSError as error:
        raise BlockError(f"{path} cannot be written: {error}") from error


def read_finished(
    folder: Path, metrics: Sequence[str], asked: Mapping[str, Any], features: bool
) -> dict[str, Any] | None:
    """A metrics.json that answers what is asked, of a folder that was claimed; None without."""
    try:
        measured = json.loads((folder / METRICS_FILE).read_text())
        answers = {
            "num": measured["num"],
            "first_seed": measured["first_seed"],
            "repeats": len(next(iter(measured["repeats"].values()))["values"]),
            "references": {
                metric: measured["references"][metric]["sha256"] for metric in asked["references"]
            },
        }
        there = all(metric in measured for metric in metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None  # not there, or of something else: it is made anew
    looking = [metric for metric in metrics if metric != FDR]
    files = all((folder / "features" / f"{metric}.npy").is_file() for metric in looking)
    return measured if there and answers == asked and (files or not features) else None


def print_metrics(measured: Mapping[str, Any]) -> None:
    """Prints the table."""
    num, repeats = measured["num"], measured["repeats"]
    count = len(next(iter(repeats.values()))["values"])
    network = measured["network"]
    times = f", {count} times" if count > 1 else ""
    print(f"{network['path']}: {num:,} images{times}, NFE: {network['evaluations']}")
    width = max(12, *(len(metric) + 2 for metric in repeats))
    for metric, figures in repeats.items():
        spread = f"  min {figures['min']:.6g}  std {figures['std']:.3g}" if count > 1 else ""
        print(f"    {metric:<{width}}{figures['mean']:.6g}{spread}")
