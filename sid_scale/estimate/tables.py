"""The counts of an iteration as tables and as JSON, at every ZeRO stage."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from sid_scale.config.run import RunConfig
from sid_scale.estimate.count import KINDS, Work
from sid_scale.estimate.report import Plan, at_stage, describe_time, make_plan
from sid_scale.estimate.roofline import Rates
from sid_scale.estimate.step import PhaseWork, fixed_and_per_sample, total
from sid_scale.estimate.traffic import checkpoint_bytes, communication, host_bytes

STAGES = (0, 1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Tables:
    """One run, counted at every ZeRO stage."""

    plan: Plan  # as the run's JSON has it
    fixed: PhaseWork  # of a micro-batch, whatever its samples
    per_sample: PhaseWork
    stages: dict[int, Plan]


def count_tables(config: RunConfig, nodes: int, gpus_per_node: int, rates: Rates) -> Tables:
    """Counts a run.

    Raises:
        SidScaleError: see `make_plan`.
    """
    plan = make_plan(config, nodes, gpus_per_node, rates)
    own = plan.settings.stage
    stages = {stage: plan if stage == own else at_stage(plan, stage) for stage in STAGES}
    doubled = make_plan(_of_twice_the_samples(config), nodes, gpus_per_node, rates)
    return Tables(plan, *fixed_and_per_sample(plan.count, doubled.count), stages)


def _of_twice_the_samples(config: RunConfig) -> RunConfig:
    micro_batch, batch_size = 2 * config.micro_batch, 2 * config.batch_size
    return dataclasses.replace(config, micro_batch=micro_batch, batch_size=batch_size)


def describe_tables(tables: Tables) -> str:
    """In lines to read."""
    samples = tables.plan.count.samples
    parts = [
        f"a micro-batch of {samples}, by phase:",
        *_aligned(_phases(tables)),
        "",
        "the same, by kind of operation (whatever the samples + for each):",
        *_aligned(_kinds(tables)),
        "",
        "GB on each GPU at its most, and an iteration's time:",
        *_aligned(_stages(tables)),
        "",
        f"as {tables.plan.settings.source.name} has it:",
        *describe_time(tables.plan),
    ]
    return "\n".join(parts)


def as_json(tables: Tables) -> dict[str, Any]:
    """Bytes, FLOP, kernels and seconds."""
    plan = tables.plan
    return {
        "micro_batch": plan.count.samples,
        "batch_size": plan.config.batch_size,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus_per_node,
        "rates": dataclasses.asdict(plan.time.rates),
        "work": [
            {"update": phase.update, "part": phase.part, "kind": kind, **dataclasses.asdict(work)}
            for (phase, kind), work in plan.count.work.items()
        ],
        "fixed": dataclasses.asdict(total(tables.fixed)),
        "per_sample": dataclasses.asdict(total(tables.per_sample)),
        "bytes_alive": [
            {"update": phase.update, "part": phase.part, "bytes": nbytes}
            for phase, nbytes in plan.count.peak.items()
        ],
        "stages": {str(stage): _stage(of_stage) for stage, of_stage in tables.stages.items()},
    }


def _stage(plan: Plan) -> dict[str, Any]:
    host = host_bytes(
        plan.sharding, plan.gpus_per_node, async_save=plan.config.checkpoint.async_save
    )
    sent = communication(plan.sharding, plan.count, plan.accumulation)
    return {
        "memory": {**dataclasses.asdict(plan.memory), "total": plan.memory.total},
        "host_memory_per_node": host,
        "checkpoint": checkpoint_bytes(plan.sharding),
        "sent_per_iteration": sent.per_iteration(plan.accumulation),
        "to_and_from_host_per_iteration": sent.host,
        "seconds": {**plan.time.terms, "iteration": plan.time.seconds},
        "dominant": plan.time.dominant,
        "images_per_second": plan.time.images_per_second,
        "mfu": plan.time.mfu,
        "gpu_hours": plan.time.gpu_hours(plan.config.total_images),
    }


# --- rows of text ----------------------------------------------------------------------------


def _phases(tables: Tables) -> Iterator[Sequence[str]]:
    count = tables.plan.count
    yield "update", "phase", "TFLOP", "GB moved", "kernels", "GB alive"
    for phase, alive in count.peak.items():
        work = _sum(work for (at, _), work in count.work.items() if at == phase)
        yield phase.update, phase.part, *_numbers(work), f"{alive / 1e9:.2f}"
    yield "all", "", *_numbers(count.total), f"{max(count.peak.values()) / 1e9:.2f}"


def _kinds(tables: Tables) -> Iterator[Sequence[str]]:
    yield "kind", "TFLOP a sample", "GB moved", "kernels"
    for name in (*KINDS, "all"):

        def of_kind(work: PhaseWork, name: str = name) -> Work:
            return _sum(w for (_, kind), w in work.items() if name in (kind, "all"))

        fixed, per_sample = of_kind(tables.fixed), of_kind(tables.per_sample)
        kernels = of_kind(tables.plan.count.work).kernels
        moved = f"{fixed.nbytes / 1e9:.2f} + {per_sample.nbytes / 1e9:.2f}"
        yield name, f"{per_sample.flop / 1e12:.3f}", moved, f"{kernels:,.0f}"


def _stages(tables: Tables) -> Iterator[Sequence[str]]:
    yield (
        *("ZeRO", "weights", "fixed", "gradients", "optimizer", "buffers", "activations"),
        *("all", "s", "images/s", "MFU", "most"),
    )
    for stage, plan in tables.stages.items():
        m, time = plan.memory, plan.time
        parts = (m.weights, m.fixed, m.gradients, m.optimizer + m.average, m.buffers)
        numbers = (f"{n / 1e9:.2f}" for n in (*parts, m.activations, m.total))
        rate = f"{time.images_per_second:,.0f}"
        yield str(stage), *numbers, f"{time.seconds:.2f}", rate, f"{time.mfu:.0%}", time.dominant


def _numbers(work: Work) -> tuple[str, str, str]:
    return f"{work.flop / 1e12:.2f}", f"{work.nbytes / 1e9:.2f}", f"{work.kernels:,.0f}"


def _sum(works: Iterator[Work]) -> Work:
    found = Work()
    for work in works:
        found.add(work)
    return found


def _aligned(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Rows as text; the first column to the left, numbers to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        yield "  " + "  ".join(cells).rstrip()
