"""How runs are, from what their folders hold."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_scale.config.parse import ConfigError
from sid_scale.config.run import load_config
from sid_scale.jobs.attempts import (
    FINISHED,
    NO_OUTCOME,
    STOPPED,
    job_of,
    newest_attempt,
    read_outcome,
)
from sid_scale.jobs.lock import read_lock, why_stale
from sid_scale.jobs.requeue import newest_checkpoint
from sid_scale.jobs.slurm import is_waiting
from sid_scale.metrics_log import read_metrics

WELL = ("running", "finished", "stopped", "queued")
NOTHING = "nothing"
RECENT = 10  # records that the rate is taken from


@dataclass(frozen=True)
class Status:
    """How one run stands; None: not known."""

    run_dir: Path
    state: str  # running, finished, stopped, queued, failed, left or nothing
    why: str = ""
    images_seen: int | None = None
    total_images: int | None = None
    images_per_second: float | None = None
    checkpoint: int | None = None  # images seen at the newest
    metric: str = ""
    seconds_left: float | None = None

    def line(self) -> str:
        """All of it, short."""
        if self.state == NOTHING:
            return f"{self.run_dir}: {self.why}"
        seen, total = _count(self.images_seen), _count(self.total_images)
        parts = [f"{self.run_dir}: {self.state}", f"{seen} of {total}"]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:.4g} img/s")
        if self.checkpoint is not None:
            parts.append(f"checkpoint {_count(self.checkpoint)}")
        if self.seconds_left is not None:
            parts.append(f"ends {_moment(time.time() + self.seconds_left)}")
        return ", ".join([*parts, *([self.metric] if self.metric else [])])

    def page(self) -> str:
        """All of it, a line each."""
        if self.state == NOTHING:
            return self.line()
        rate = self.images_per_second
        rows = {
            "state": self.state + (f": {self.why}" if self.why else ""),
            "images seen": f"{_count(self.images_seen)} of {_count(self.total_images)}",
            "rate": "unknown" if rate is None else f"{rate:.4g} images a second",
            "checkpoint": "none" if self.checkpoint is None else f"at {_count(self.checkpoint)}",
            "metric": self.metric or "none",
            "expected end": "unknown"
            if self.seconds_left is None
            else f"{_moment(time.time() + self.seconds_left)}, in {_span(self.seconds_left)}",
        }
        return "\n".join([str(self.run_dir), *(f"  {k:<13} {v}" for k, v in rows.items())])


def status_of(run_dir: Path) -> Status:
    """Reads how a run stands; whatever is missing or damaged is left out."""
    state, why = _state(run_dir)
    records = _records(run_dir)
    seen = records[-1].get("images_seen") if records else None
    newest = newest_checkpoint(run_dir)
    checkpoint = newest if newest >= 0 else None
    try:
        total = load_config(run_dir / "config.yaml").total_images
    except ConfigError:
        total = None
    rate = _rate(records)
    left = (total - seen) / rate if state == "running" and rate and total and seen else None
    seen = checkpoint if seen is None else seen
    return Status(run_dir, state, why, seen, total, rate, checkpoint, _metric(records), left)


def _state(run_dir: Path) -> tuple[str, str]:
    if not (run_dir / "config.yaml").is_file() and newest_attempt(run_dir) is None:
        return NOTHING, "no run has begun there"
    holder, stale = read_lock(run_dir), why_stale(run_dir)
    if holder is not None and stale is None:
        return "running", f"{holder}"
    attempt = newest_attempt(run_dir)
    outcome = None if attempt is None else read_outcome(attempt)
    if outcome is not None and outcome.kind == FINISHED:
        return "finished", f"at {_moment(outcome.time)}"
    job = None if attempt is None else job_of(attempt)
    end = NO_OUTCOME if outcome is None else f"{outcome}"
    if job is not None and is_waiting(job.id):
        return "queued", f"SLURM job {job.id} goes on; before: {end}"
    if holder is not None and outcome is None:
        return "left", f"{holder}: {stale}"
    if outcome is not None:
        return ("stopped" if outcome.kind == STOPPED else "failed"), end
    return "left", end


def _records(run_dir: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(run_dir)
    except OSError:
        return []


def _rate(records: list[dict[str, Any]]) -> float | None:
    rates = [r["images_per_second"] for r in records[-RECENT:] if r.get("images_per_second")]
    return sorted(rates)[len(rates) // 2] if rates else None


def _metric(records: list[dict[str, Any]]) -> str:
    """The newest evaluation, or the newest loss of the generator."""
    for record in reversed(records):
        found = {k: v for k, v in record.items() if k.startswith("evaluation/") and v is not None}
        if found:
            shown = ", ".join(f"{k.removeprefix('evaluation/')} {v:.4g}" for k, v in found.items())
            return f"{shown} at {_count(record['images_seen'])}"
    for record in reversed(records):
        if isinstance(loss := record.get("loss/generator_sid"), float):
            return f"loss/generator_sid {loss:.4g}"
    return ""


def _count(images: int | None) -> str:
    return "?" if images is None else f"{images:,}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _span(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes:02d} min"
