"""Evaluations as users start them, on real ranks but without a launcher."""

import argparse
import json
from pathlib import Path
from typing import Any

from sid_scale.commands.evaluate import add_arguments
from sid_scale.evaluate.offline import evaluate_generator, evaluate_teacher, metrics_of
from sid_scale.evaluate.references.compute import make_reference
from sid_scale.hub.folders import fill_options, on_every_node
from tests.ranks import joined, run_ranks

WORK = {"run": evaluate_generator, "teacher": evaluate_teacher, "reference": make_reference}


def evaluate(command: str, *words: object, ranks: int = 1) -> None:
    """`sid-scale evaluate COMMAND WORDS...` on some ranks."""
    run_ranks(ranks, work, command, [str(word) for word in words])


def work(rank: int, command: str, words: list[str]) -> None:
    """What one rank of `evaluate` does."""
    here, given = joined(), options(command, words)
    fill_options(given, on_every_node)
    WORK[command](given, here)


def options(command: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parsed = parser.parse_args([command, *words])
    parsed.metrics = metrics_of(parsed)
    return parsed


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())
