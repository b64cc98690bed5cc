"""A data set in the making: any number of processes fill one folder, in any order, and stop and
go on as they like.

What the shards' bytes depend on is a `Plan`; the folder keeps it as `recipe.json` and takes no
other. Each finished shard leaves a note in `.making/`; a process that is started again keeps the
shards that still are what their notes say. The process that finds all notes there writes the index.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sid_scale.data.prepare.plan import Plan
from sid_scale.data.prepare.shard_writer import WrittenShard, index_of, shard_name, write_shard
from sid_scale.data.shards import INDEX, Shard, ShardError, ShardIndex, read_index, write_index
from sid_scale.errors import SidScaleError
from sid_scale.inputs_changed import changed_inputs

RECIPE = "recipe.json"
WORK = ".making"
MOST_TOLD = 20  # refused samples in one message
GO_ON = "With that mended, the same command goes on from here"


# --- the folder ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The share of one process: the shards whose number is `number` modulo `of`."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True)
class ShardBuild:
    """A folder in which a data set is being made, as one process sees it."""

    folder: Path
    plan: Plan
    part: Part = Part()

    @property
    def mine(self) -> range:
        """Numbers of this process's shards."""
        return range(self.part.number, self.plan.shards, self.part.of)

    @property
    def _scratch(self) -> Path:
        return self.folder / WORK / f"part-{self.part.number}-of-{self.part.of}"

    @property
    def is_finished(self) -> bool:
        """Whether the index is there; the notes may then be gone."""
        return (self.folder / INDEX).exists()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Inside, the folder is this plan's, and no other process has this part.

        Raises:
            ShardError: the folder holds another data set, another process makes this part at the
                moment, or it cannot be written.
        """
        try:
            self._claim()
            # Of a finished data set there is nothing to hold.
            held: AbstractContextManager[Any] = nullcontext() if self.is_finished else self._hold()
        except OSError as error:
            raise ShardError(f"{self.folder} cannot be used: {error}") from error
        with held:
            yield

    def make(self, number: int, records: Callable[[], Iterable[dict[str, Any]]]) -> int:
        """Shard number `number`: as it is, if it is finished and sound, or else made of records.

        Returns:
            How many samples it holds.

        Raises:
            ShardError: it cannot be written.
        """
        path = self.folder / shard_name(number)
        count = self.plan.count(number)
        try:
            noted = self._noted(number)
            if noted is not None and path.is_file() and Shard.of(path, count) == noted.shard:
                return count
            if noted is None and self.is_finished:  # by another, who cleared the notes away
                return count
            self._note(number, write_shard(path, records(), self._scratch / path.name))
        except OSError as error:
            raise ShardError(f"{path} cannot be written: {error}. {GO_ON}") from error
        return count

    def finish(self) -> ShardIndex | None:
        """Writes the index if all shards are there; returns it.

        Several processes may do so at the same moment: they write the same.

        Raises:
            ShardError: it cannot be written.
        """
        noted = [self._noted(number) for number in range(self.plan.shards)]
        shards = [written for written in noted if written is not None]
        try:
            if len(shards) == self.plan.shards and not self.is_finished:
                write_index(self._scratch, index_of(shards, self.plan.format, self.plan.codec))
                os.replace(self._scratch / INDEX, self.folder / INDEX)
        except OSError as error:
            # If another has finished meanwhile, it has cleared the place away where we write.
            if not self.is_finished:
                raise ShardError(f"{self.folder / INDEX} cannot be written: {error}") from error
        if not self.is_finished:
            return None
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        return read_index(self.folder)

    def _claim(self) -> None:
        recipe, path = self.plan.recipe, self.folder / RECIPE
        if not path.exists():
            if self.is_finished:
                raise ShardError(f"{self.folder} already holds a data set; choose another folder")
            self._scratch.mkdir(parents=True, exist_ok=True)
            (self._scratch / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
            os.replace(self._scratch / RECIPE, path)
        try:
            message = changed_inputs(path, "shards", recipe)
        except ValueError as error:
            raise ShardError(f"{path}: damaged ({error}); choose another folder") from error
        if message:
            raise ShardError(message)

    def _hold(self) -> IO[str]:
        """This part's lock, and its place to write in, empty."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        lock = (self._scratch / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(
                f"{self.folder}: another process makes part {self.part.number}/{self.part.of} of "
                "it at the moment"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{self.folder}: no locks on this file system ({error.strerror}): no other process "
                "sees to it that no part is made twice at the same time",
                stacklevel=2,
            )
        for left_over in self._scratch.glob("shard-*"):
            left_over.unlink()
        return lock

    def _note_path(self, number: int) -> Path:
        return self.folder / WORK / f"{shard_name(number)}.json"

    def _note(self, number: int, written: WrittenShard) -> None:
        note = {
            "plan": self.plan.digest,
            "shard": dataclasses.asdict(written.shard),
            "classes": sorted(written.classes.items()),
        }
        partial = self._scratch / f"{shard_name(number)}.json"
        partial.write_text(json.dumps(note))
        os.replace(partial, self._note_path(number))

    def _noted(self, number: int) -> WrittenShard | None:
        """What the note of a shard says; None if there is none, or one of another plan."""
        try:
            note = json.loads(self._note_path(number).read_text())
            if note["plan"] != self.plan.digest:
                return None
            return WrittenShard(Shard(**note["shard"]), Counter(dict(note["classes"])))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


# --- samples ------------------------------------------------------------------------------


class RejectedSamples:
    """Samples of a shard that have no place in a data set: reported together, and the shard is not
    written."""

    def __init__(self) -> None:
        self._told: list[str] = []

    @contextmanager
    def collected(self, where: str) -> Iterator[None]:
        """A `SidScaleError` inside is kept for later."""
        try:
            yield
        except SidScaleError as error:
            self._told.append(f"{where}: {error}")
            if len(self._told) == MOST_TOLD:
                self.raise_any()

    @property
    def any(self) -> bool:
        return bool(self._told)

    def raise_any(self) -> None:
        """Raises ShardError if there were some."""
        if self._told:
            raise ShardError(
                f"{len(self._told)} of a shard's samples refused:\n  "
                + "\n  ".join(self._told)
                + "\nMend them in their place; what is finished stays, and the same command goes on"
            )
