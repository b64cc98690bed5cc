"""A trace and a memory snapshot of a few iterations, as `profile` asks for."""

import gzip
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function
from tqdm import tqdm

from sid_scale.config.run import RunConfig
from sid_scale.distill.telemetry import Telemetry
from sid_scale.ranks import Ranks

FOLDER = "profile"  # in the run folder
MOST_ALLOCATIONS = 100_000  # that a memory snapshot tells the history of


class ProfileWindow:
    """The window of one attempt. Use as a context manager, which writes what is under way.

    A resumed run that goes on behind the window's beginning leaves it out. Whatever goes wrong is
    one line in the log.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, telemetry: Telemetry):
        self._settings, self._batch_size = config.profile, config.batch_size
        self._ranks, self._telemetry = ranks, telemetry
        self._folder = Path(config.run_dir) / FOLDER
        self._name = ""  # of its files; "": it is not open
        self._left = 0  # iterations
        self._profiler: Any = None
        self._iteration: Any = None

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def next_iteration(self, images_seen: int) -> None:
        """An iteration begins, and the one before has ended."""
        if self._name:
            self._left -= 1
            if self._left:
                self._mark(images_seen)
            else:
                self._close()
        elif self._begins_at(images_seen):
            self._open(images_seen)

    def _begins_at(self, images_seen: int) -> bool:
        settings = self._settings
        if settings is None or not (self._ranks.is_first or settings.ranks == "all"):
            return False
        return settings.at_images <= images_seen < settings.at_images + self._batch_size

    def _open(self, images_seen: int) -> None:
        assert self._settings is not None
        try:
            self._profiler = profile(record_shapes=True)
            self._profiler.start()
            if self._records_memory:
                torch.cuda.memory._record_memory_history(
                    max_entries=MOST_ALLOCATIONS, stacks="python", clear_history=True
                )
            elif self._settings.memory:
                self._say("no memory snapshot: there is none of a CPU")
        except Exception as error:  # a driver that does not allow it
            self._say(f"not started: {error}")
            return
        self._name = f"{images_seen:012d}-rank{self._ranks.rank}"
        self._left = self._settings.steps
        self._mark(images_seen)

    def _mark(self, images_seen: int) -> None:
        """Names the iteration that begins, in the trace."""
        if self._iteration is not None:
            self._iteration.__exit__(None, None, None)
        self._iteration = record_function(f"iteration at {images_seen} images")
        self._iteration.__enter__()

    def _close(self) -> None:
        """Writes the window's files, if it is open."""
        name, self._name = self._name, ""
        if not name:
            return
        with self._telemetry.paused():
            self._iteration.__exit__(None, None, None)
            self._iteration = None
            for write in (self._write_trace, self._write_memory):
                try:
                    write(name)
                except Exception as error:  # a full disk, a driver: the run is worth more
                    self._say(f"{write.__name__.removeprefix('_write_')} not written: {error}")
            self._profiler = None

    def _write_trace(self, name: str) -> None:
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"{name}.trace.json.gz"
        plain = trace.with_suffix("")  # PyTorch would put it to /tmp, which may be small
        try:
            self._profiler.export_chrome_trace(str(plain))
            with open(plain, "rb") as read, gzip.open(trace, "wb", compresslevel=3) as written:
                shutil.copyfileobj(read, written)
        finally:
            plain.unlink(missing_ok=True)
        self._say(f"trace: {trace}")

    def _write_memory(self, name: str) -> None:
        if not self._records_memory:
            return
        snapshot = self._folder / f"{name}.memory.pickle"
        try:
            torch.cuda.memory._dump_snapshot(str(snapshot))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        self._say(f"memory snapshot: {snapshot}")

    @property
    def _records_memory(self) -> bool:
        wanted = self._settings is not None and self._settings.memory
        return wanted and self._ranks.device.type == "cuda"

    def _say(self, message: str) -> None:
        if self._ranks.is_first:
            self._telemetry.say(f"profile: {message}")
        else:
            tqdm.write(f"rank {self._ranks.rank}: profile: {message}", file=sys.stderr)
