"""A data set in the making: any number of processes fill one folder, in any order, and stop and
go on as they like.

What the shards' bytes depend on is a `Plan`; the folder keeps it as `recipe.json` and takes no
other. Each finished shard leaves a note in `.making/`; a process that is started again keeps the
shards that still are what their notes say. The process that finds all notes there writes the index.
"""

import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from sid_scale.data.prepare.plan import Plan
from sid_scale.data.prepare.refusals import Refusal, Refusals, RefusedSamples, list_refusals
from sid_scale.data.prepare.shard_notes import RECIPE, WORK, ShardNotes
from sid_scale.data.prepare.shard_writer import index_of, shard_name, write_shard
from sid_scale.data.shards import INDEX, Shard, ShardError, ShardIndex, read_index, write_index
from sid_scale.inputs_changed import changed_inputs

BEGIN_SECONDS, POLL_SECONDS = 60.0, 0.1  # that processes started together may begin apart
GO_ON = "With that mended, the same command goes on from here"


# --- the folder ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The share of one process: the shards whose number is `number` modulo `of`."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True)
class ShardBuild:
    """A folder in which a data set is being made, as one process sees it.

    Args:
        max_bad: so many of the source's samples may be left out because they are refused; None: a
            shard with such a sample is not written.
    """

    folder: Path
    plan: Plan
    share: Share = Share()
    max_bad: int | None = None

    @property
    def mine(self) -> range:
        """Numbers of this process's shards."""
        return range(self.share.number, self.plan.shards, self.share.of)

    @property
    def notes(self) -> ShardNotes:
        return ShardNotes(self.folder, self.plan)

    @property
    def _scratch(self) -> Path:
        return self.folder / WORK / f"part-{self.share.number}-of-{self.share.of}"

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

    def make(self, number: int, records: Callable[[Refusals], Iterable[dict[str, Any]]]) -> int:
        """Shard number `number`: as it is, if it is finished and sound, or else made of records;
        of those that are refused, see `check_refused`.

        Returns:
            How many of the plan's samples are done with.

        Raises:
            ShardError: it cannot be written.
        """
        path = self.folder / shard_name(number)
        count = self.plan.count(number)
        try:
            noted = self.notes.finished(number)
            if noted and path.is_file() and Shard.of(path, noted.shard.samples) == noted.shard:
                return count
            if noted is None and self.is_finished:  # by another, who cleared the notes away
                return count
            refusals = Refusals(leave_out=self.max_bad is not None)
            try:
                written = write_shard(path, _all(records, refusals), self._scratch / path.name)
            except _NotWritten:
                self.notes.write_refused(number, refusals.found)
                return count
            self.notes.write_refused(number, refusals.found)
            self.notes.write(number, written, refusals.left_out, self._scratch)
        except OSError as error:
            raise ShardError(f"{path} cannot be written: {error}. {GO_ON}") from error
        return count

    def check_refused(self) -> None:
        """Reports refused samples, once all shards of this process have been tried.

        Raises:
            RefusedSamples: shards of this process are not written because of some, or finished
                shards lack more than `max_bad`.
        """
        waiting = [number for number in self.mine if self.notes.finished(number) is None]
        refused = [refusal for refusal in self.notes.refused(waiting) if not refusal.settled]
        if refused:
            known = self.notes.refused(range(self.plan.shards))  # those of other processes, too
            raise RefusedSamples(
                f"{len(refused):,} samples are refused:\n{self._listed(refused)}\n"
                f"All others are looked at and kept. Mend these in their place, or delete them; or "
                f"leave them out: --on-bad-image skip --max-bad {len(known)}. The same command "
                "then goes on from here"
            )
        self._check_left_out()

    def _check_left_out(self) -> None:
        if self.max_bad is None:
            return
        left_out = [refusal for refusal in self.notes.left_out() if not refusal.settled]
        if len(left_out) > self.max_bad:
            raise RefusedSamples(
                f"{len(left_out):,} samples are refused, more than --max-bad {self.max_bad}:\n"
                f"{self._listed(left_out)}\nWhat is finished stays; with a larger --max-bad the "
                "same command goes on from here"
            )

    def _listed(self, refusals: list[Refusal]) -> str:
        part = f"{self.share.number}-of-{self.share.of}"
        return list_refusals(refusals, self.folder / WORK / f"refused-{part}.txt")

    def wait_for(self, shares: Iterable[Share]) -> None:
        """Returns when no process makes one of these parts any more; for processes that are started
        together, of which some may not have begun."""
        deadline = time.monotonic() + BEGIN_SECONDS
        for share in shares:
            lock = replace(self, share=share)._scratch / "lock"
            while not (lock.exists() or self.is_finished or time.monotonic() > deadline):
                time.sleep(POLL_SECONDS)
            with suppress(OSError), lock.open() as file:  # not there: not begun, or all is done
                fcntl.flock(file, fcntl.LOCK_SH)

    def finish(self) -> ShardIndex | None:
        """Writes the index if all shards are there, of those that hold samples; returns it.

        Several processes may do so at the same moment: they write the same.

        Raises:
            ShardError: it cannot be written, or no sample is left.
            RefusedSamples: more samples are left out than may be.
        """
        noted = [self.notes.finished(number) for number in range(self.plan.shards)]
        shards = [written for written in noted if written is not None]
        filled = [written for written in shards if written.shard.samples]
        try:
            if len(shards) == self.plan.shards and not self.is_finished:
                self._check_left_out()
                if not filled:
                    raise ShardError(f"{self.folder}: all samples are refused; mend the source")
                self._list_refused()
                for number, written in enumerate(shards):
                    if not written.shard.samples:
                        (self.folder / shard_name(number)).unlink(missing_ok=True)
                write_index(self._scratch, index_of(filled, self.plan.format, self.plan.codec))
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
                f"{self.folder}: another process makes part {self.share.number}/{self.share.of} of "
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

    def _list_refused(self) -> None:
        """Puts into the recipe which samples were refused, and which of them are left out."""
        refused = self.notes.for_recipe()
        if refused:
            recipe = json.loads((self.folder / RECIPE).read_text())
            (self._scratch / RECIPE).write_text(
                json.dumps({**recipe, "refused": refused}, indent=1) + "\n"
            )
            os.replace(self._scratch / RECIPE, self.folder / RECIPE)


class _NotWritten(Exception):
    """A shard is not to be written, because samples of it are refused."""


def _all(
    records: Callable[[Refusals], Iterable[dict[str, Any]]], refusals: Refusals
) -> Iterator[dict[str, Any]]:
    """A shard's records.

    Raises:
        _NotWritten: the shard is not to be without those that were refused.
    """
    yield from records(refusals)
    if refusals.stop:
        raise _NotWritten
