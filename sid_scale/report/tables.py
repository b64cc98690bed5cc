"""A run in figures and words: what stands at its head, and the tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sid_scale.generators.card_facts import METHODS
from sid_scale.report.curves import hours_of, metric_curve, metrics_of
from sid_scale.report.measurements import METRICS, TEACHER, Measurement, in_order, metric_kind
from sid_scale.report.read import RunFolder
from sid_scale.report.titles import capital

SHORT_HASH = 10  # characters of a SHA-256 that are shown
NOTHING = "\N{EN DASH}"
HASHES = ("Compared with (SHA-256)", "Weights (SHA-256)")


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row. A cell's further lines are set smaller."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# --- numbers ------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Four digits, and of large ones all; what is not finite or not there is a dash."""
    if value is None or not np.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#.4g}".rstrip(".")


def count(value: Any) -> str:
    """An integer with its thousands separated."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else NOTHING


def duration(hours: float) -> str:
    """Hours, or minutes of short runs."""
    if not np.isfinite(hours):
        return NOTHING
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


# --- one run ------------------------------------------------------------------------------


def sentence(run: RunFolder) -> str:
    """A run in a few words."""
    method = str(run.config.get("method", ""))
    where, stage = run.environment, run.environment.get("zero_stage")
    parts = [
        METHODS[method][0] if method in METHODS else method,
        _steps(run.config.get("steps")),
        _teacher(run.teacher),
        _ranks(where["ranks"], where.get("device")) if "ranks" in where else "",
        f"ZeRO {stage}" if stage is not None else "",
        str(where.get("compute_dtype", "")),
    ]
    return " · ".join(part for part in parts if part)


def _teacher(title: str) -> str:
    return title if "teacher" in title.lower() or not title else f"teacher {title}"


def _ranks(ranks: Any, device: Any) -> str:
    kinds = {"cpu": ("CPU rank", "CPU ranks"), "cuda": ("GPU", "GPUs")}
    one, several = kinds.get(str(device), (f"rank on {device}", f"ranks on {device}"))
    return f"{ranks} {one if ranks == 1 else several}"


def _steps(steps: Any) -> str:
    return "one step" if steps == 1 else f"{steps} steps" if steps else ""


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """The figures at the head of a run."""
    rates = [rate for record in run.records if (rate := record.get("images_per_second"))]
    hours, total = hours_of(run.records), count(run.config.get("total_images"))
    of_all = f" of {total}" if total != NOTHING else ""
    found = [
        ("Images seen", f"{count(run.images_seen)}{of_all}"),
        ("Training time", duration(float(hours[-1])) if len(hours) else NOTHING),
        ("Images per second, median", number(float(np.median(rates))) if rates else NOTHING),
    ]
    for metric in in_order(metrics_of(run))[:2]:
        curve = metric_curve(run, metric)
        if curve is not None:
            found.append((f"{metric_title(metric)}, last", number(float(curve.values[-1]))))
    return found


def metrics_table(evaluations: Sequence[Measurement]) -> Table:
    """What evaluations have measured: a row a network, teachers first."""
    metrics = in_order(name for evaluation in evaluations for name in evaluation.values)
    order = sorted(
        evaluations,
        key=lambda e: (
            e.network.kind != TEACHER,
            e.network.evaluations or 0 if e.network.kind == TEACHER else 0,
            e.network.images_seen or 0,
            str(e.source),
        ),
    )
    headings = [heading(metric) for metric in metrics]
    return _without_empty_columns(
        ("Network", *headings, "Images", "Seeds", *HASHES, "Source"),
        [
            (
                evaluation.network.title,
                *(_value(evaluation, metric) for metric in metrics),
                count(evaluation.num),
                _seeds(evaluation),
                _compared_with(evaluation.hashes),
                evaluation.network.sha256[:SHORT_HASH] or NOTHING,
                str(evaluation.source).removesuffix("/metrics.json"),
            )
            for evaluation in order
        ],
    )


def _without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = [i for i in range(len(columns)) if any(row[i] != NOTHING for row in rows)]
    return Table(
        tuple(columns[i] for i in shown), tuple(tuple(row[i] for i in shown) for row in rows)
    )


def metric_title(metric: str) -> str:
    """A metric's title; one that is not known keeps its own name."""
    title = metric_kind(metric).title
    return capital(title) if metric in METRICS else title


def heading(metric: str) -> str:
    """A metric's title, with an arrow towards what is better."""
    arrow = {"lower": " ↓", "higher": " ↑"}.get(metric_kind(metric).better, "")
    return metric_title(metric) + arrow


def _value(evaluation: Measurement, metric: str) -> str:
    value, repeats = evaluation.values.get(metric), evaluation.repeats.get(metric)
    if repeats is None or len(repeats.values) < 2:
        return number(value)
    low, high = number(min(repeats.values)), number(max(repeats.values))
    return f"{number(repeats.mean)}\n± {repeats.std:.2g}, {low} to {high}"


def _compared_with(hashes: Mapping[str, str]) -> str:
    """A line for each file, not for each metric that it serves: one reference serves many."""
    serves: dict[tuple[str, str], list[str]] = {}
    for what, digest in hashes.items():
        kind, metric = what.split(" ", 1)
        serves.setdefault((kind, digest[:SHORT_HASH]), []).append(metric)
    kinds = Counter(kind for kind, _ in serves)
    lines = [
        f"{kind} {digest}"
        if kinds[kind] == 1 and len(metrics) > 1
        else f"{kind} {', '.join(metrics)} {digest}"
        for (kind, digest), metrics in serves.items()
    ]
    return "\n".join(lines) or NOTHING


def _seeds(evaluation: Measurement) -> str:
    first, num = evaluation.first_seed, evaluation.num
    if first is None or num is None:
        return NOTHING
    times = max((len(repeats.values) for repeats in evaluation.repeats.values()), default=1)
    return f"{first:,} to {first + times * num - 1:,}" + (f"\n{times} sets" if times > 1 else "")


# --- several runs -------------------------------------------------------------------------


def comparison_table(runs: Sequence[RunFolder]) -> Table:
    """A row a run: how far it came, how fast, and each metric's last value and its best."""
    metrics = in_order(set().union(*(metrics_of(run) for run in runs)))
    rows = []
    for run in runs:
        given = dict(facts(run)[:3])
        rows.append((run.name, *given.values(), *(_last_and_best(run, m) for m in metrics)))
    headings = [f"{heading(metric)}, last (best)" for metric in metrics]
    return Table(
        ("Run", "Images seen", "Training time", "Images per second, median", *headings), tuple(rows)
    )


def differing_settings(runs: Sequence[RunFolder]) -> Table:
    """Settings and circumstances that are not the same in all runs; a row a setting."""
    flat = [{**flatten(run.config), **flatten(run.environment)} for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [
        (name, *(settings.get(name, NOTHING) for settings in flat))
        for name in names
        if len({settings.get(name) for settings in flat}) > 1 and name != "run_dir"
    ]
    return Table(("Setting", *(run.name for run in runs)), tuple(rows))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text under dotted names."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _last_and_best(run: RunFolder, metric: str) -> str:
    curve, better = metric_curve(run, metric), metric_kind(metric).better
    if curve is None:
        return NOTHING
    last = number(float(curve.values[-1]))
    if not better or len(curve.values) < 2:
        return last
    best = curve.values.min() if better == "lower" else curve.values.max()
    return f"{last} ({number(float(best))})"
