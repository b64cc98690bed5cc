"""Samples that have no place in a data set: damaged, of another shape, or not finite.

Those of a shard are collected, not met one at a time. Either the shard is not written, and all that
were refused are reported when all shards have been tried; or they are left out, and listed.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sid_scale.atomic import atomic_write
from sid_scale.data.prepare.raw_samples import Entry, GoneSample, Raw
from sid_scale.data.shards import ShardError
from sid_scale.errors import SidScaleError

T = TypeVar("T")

MOST_TOLD = 20  # in one message


class Refusal(NamedTuple):
    """A sample that was refused, as it was then; `settled` once it is mended, or gone."""

    entry: Entry
    where: str
    why: str
    settled: bool = False

    def as_json(self) -> dict[str, Any]:
        fields = {"where": self.where, "why": self.why, "settled": self.settled}
        return {**self.entry._asdict(), **fields}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Refusal":
        entry = Entry(str(fields["name"]), int(fields["label"]), str(fields["check"]))
        return cls(entry, str(fields["where"]), str(fields["why"]), bool(fields["settled"]))


class RefusedSamples(ShardError):
    """Samples are refused, and shards with them are not written."""


@dataclass
class Refusals:
    """Those of one shard.

    Args:
        leave_out: the shard is written without them.
    """

    leave_out: bool
    found: list[Refusal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # names

    @property
    def stop(self) -> bool:
        """Whether the shard will not be written, so that only further refusals matter."""
        return bool(self.found) and not self.leave_out

    def attempt(self, raw: Raw, make: Callable[[], T]) -> T | None:
        """What `make` makes of a sample; None if it is refused, or gone since it was."""
        try:
            return make()
        except GoneSample:
            self.left_out.append(raw.entry.name)
        except SidScaleError as error:
            self.found.append(Refusal(raw.entry, raw.where, str(error)))
            if self.leave_out:
                self.left_out.append(raw.entry.name)
        return None


def write_refusals(path: Path, refusals: Iterable[Refusal]) -> None:
    """Brings a file of refusals up to date: those that are found no more are settled.

    An entry stays as it was when it was met first, for the source's fingerprint is of then.
    """
    known = {r.entry.name: r._replace(settled=True) for r in read_refusals(path)}
    for refusal in refusals:
        first = known.get(refusal.entry.name, refusal)
        known[refusal.entry.name] = refusal._replace(entry=first.entry)
    if known:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps([refusal.as_json() for refusal in known.values()]))


def read_refusals(path: Path) -> list[Refusal]:
    """The refusals in a file; none if there is no such file.

    Raises:
        ShardError: it is damaged.
    """
    try:
        return [Refusal.from_json(fields) for fields in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path}: damaged ({error}). Without this note a source that lost or mended samples is "
            "another: put the samples back as they were and delete it, or choose another folder"
        ) from error


def list_refusals(refusals: list[Refusal], path: Path) -> str:
    """Refusals as the lines of a message; if they are many, the rest is written to a file."""
    lines = [f"  {refusal.where}: {refusal.why}" for refusal in refusals]
    if len(lines) > MOST_TOLD:
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
        lines = [*lines[:MOST_TOLD], f"  ... all {len(lines):,} are listed in {path}"]
    return "\n".join(lines)
