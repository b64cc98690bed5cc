"""What is known of the shards of a data set in the making: a note beside them for each.

A note says which file is finished, and which of its samples are left out. Another lists the samples
that were ever refused; it stays until the data set is finished, when both are in its recipe.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_scale.data.prepare.plan import Plan
from sid_scale.data.prepare.raw_samples import Entry
from sid_scale.data.prepare.refusals import Refusal, read_refusals, write_refusals
from sid_scale.data.prepare.shard_writer import WrittenShard, shard_name
from sid_scale.data.shards import Shard

RECIPE = "recipe.json"
WORK = ".making"
REFUSED = ".refused.json"


@dataclass(frozen=True)
class ShardNotes:
    """The notes on a plan's shards, in a folder."""

    folder: Path
    plan: Plan

    def write(self, number: int, written: WrittenShard, left_out: list[str], scratch: Path) -> None:
        """Notes that a shard is finished; `scratch` is this process's place to write in."""
        note = {
            "plan": self.plan.digest,
            "shard": dataclasses.asdict(written.shard),
            "classes": sorted(written.classes.items()),
            "left_out": left_out,
        }
        partial = scratch / f"{shard_name(number)}.json"
        partial.write_text(json.dumps(note))
        os.replace(partial, self._path(number))

    def finished(self, number: int) -> WrittenShard | None:
        """A shard as its note has it; None if there is no note, or one of another plan."""
        note = self._read(number)
        if note is None:
            return None
        try:
            return WrittenShard(Shard(**note["shard"]), Counter(dict(note["classes"])))
        except (KeyError, TypeError, ValueError):
            return None

    def write_refused(self, number: int, refusals: list[Refusal]) -> None:
        """Notes which samples of a shard are refused."""
        write_refusals(self._refused_path(number), refusals)

    def refused(self, numbers: Iterable[int]) -> list[Refusal]:
        """The samples of these shards that were ever refused, each once."""
        found = (refusal for n in numbers for refusal in read_refusals(self._refused_path(n)))
        return list({refusal.entry.name: refusal for refusal in found}.values())

    def left_out(self) -> list[Refusal]:
        """The samples that finished shards lack."""
        names: set[str] = set()
        for number in range(self.plan.shards):
            note = self._read(number)
            names.update(note.get("left_out", ()) if note else ())
        return [r for r in self.refused(range(self.plan.shards)) if r.entry.name in names]

    def for_recipe(self) -> list[dict[str, Any]]:
        """All refused samples, and whether the data set is without them."""
        left_out = {refusal.entry.name for refusal in self.left_out()}
        return [
            {**refusal.as_json(), "left_out": refusal.entry.name in left_out}
            for refusal in self.refused(range(self.plan.shards))
        ]

    def _path(self, number: int) -> Path:
        return self.folder / WORK / f"{shard_name(number)}.json"

    def _refused_path(self, number: int) -> Path:
        return self.folder / WORK / f"{shard_name(number)}{REFUSED}"

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            note = json.loads(self._path(number).read_text())
            return note if note["plan"] == self.plan.digest else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def left_out_of(folder: Path) -> list[str]:
    """Names of the samples that the finished data set in a folder lacks."""
    refused = json.loads((folder / RECIPE).read_text()).get("refused", [])
    return [fields["name"] for fields in refused if fields["left_out"]]


def known_refusals(folder: Path) -> list[Entry]:
    """The samples that were ever refused for the data set in a folder, finished or not.

    Raises:
        ShardError: a note of it is damaged.
    """
    found = [
        refusal
        for path in sorted((folder / WORK).glob(f"*{REFUSED}"))
        for refusal in read_refusals(path)
    ]
    with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged recipe is met later
        recipe = json.loads((folder / RECIPE).read_text())
        found += [Refusal.from_json(fields) for fields in recipe.get("refused", ())]
    return [refusal.entry for refusal in found]
