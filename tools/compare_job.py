"""One run of `compare_methods.py`: what is asked for, and the settings that follow."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from compare_rows import ROWS, Row, row_named

from sid_scale.config.run import RunConfig, load_config

EVEN, ODD = 0, 1  # halves of the real digits
NOISE_SEED = 7  # of generated digits that are reported
NEVER = 10**12  # images
RATES = (
    "learning_rate.generator",
    "objective.fake_score.learning_rate",
    "objective.discriminator.learning_rate",
)


@dataclass(frozen=True)
class Job:
    """A row, how long it is trained, and how it is judged."""

    row: str
    seed: int  # of the training
    images: int  # of the whole road: a row that goes on from another trains on half of them
    snapshots: int  # that are judged, at equal distances
    half: int  # of the real digits that generated ones are compared with: 0 even, 1 odd
    noise_seed: int  # of generated digits
    rate: float | None = None  # factor of the learning rates instead of the row's

    @property
    def name(self) -> str:
        """Of its folder and files: changes with whatever changes its result."""
        known = hashlib.sha256(repr((self, *self._rows())).encode()).hexdigest()[:8]
        row = self.row.lower().replace(",", "").replace(" ", "-")
        return f"{row}-{self.seed}-{known}"

    def before(self) -> "Job | None":
        """The run that this one goes on from."""
        after = row_named(self.row).after
        return None if after is None else replace(self, row=after)

    def _rows(self) -> list[Row]:
        before = self.before()
        return [row_named(self.row), *(before._rows() if before else [])]


def config_of(job: Job, work: Path) -> RunConfig:
    """The run of a job on one rank, in `work`."""
    row, before = row_named(job.row), job.before()
    given = [text.format(guide=guide_folder(work, row.domain)) for text in row.overrides]
    if before is not None:
        half = work / before.name / "snapshots" / f"{job.images // 2:012d}"
        given.append(f"generator_init={half}")
    preset = load_config(row.preset, given)
    scale = row.rate if job.rate is None else job.rate
    given += [f"{key}={scale * rate}" for key in RATES if (rate := _setting(preset, key))]
    every = job.images // job.snapshots
    return load_config(
        row.preset,
        [
            *given,
            f"run_dir={work / job.name}",
            f"data={shards_folder(work, row.domain)}",
            f"seed={job.seed}",
            f"micro_batch={preset.batch_size}",
            f"total_images={job.images if before is None else job.images // 2}",
            "learning_rate.ramp_down_images=0",
            f"checkpoint.every_images={NEVER}",
            f"snapshot.every_images={every}",
            f"log.every_images={every}",
            "log.samples_every_images=0",
            "resume=never",
        ],
    )


def result_file(work: Path, job: Job) -> Path:
    """What a run leaves when it is done."""
    return work / f"{job.name}.json"


def shards_folder(work: Path, domain: str) -> Path:
    return work / "shards" / domain


def guide_folder(work: Path, domain: str) -> Path:
    """Network folder of the guide."""
    return work / "guides" / domain


def references_file(work: Path, domain: str) -> Path:
    """What the teacher and real digits measure."""
    return work / "references" / f"{domain}.json"


def described(job: Job) -> dict[str, Any]:
    """What the results keep of a job."""
    return {"name": job.name, **asdict(job)}


def holds(result: Mapping[str, Any]) -> bool:
    """Whether a run of today's rows would have this result: its row is what it was."""
    job = Job(**{field.name: result[field.name] for field in fields(Job)})
    known = job.row in {row.name for row in ROWS}
    return known and job.name == result["name"]


def _setting(config: Any, key: str) -> float | None:
    """What the dotted `key` holds; None where the method has none such."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config
