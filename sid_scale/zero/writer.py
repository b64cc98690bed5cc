"""Writing checkpoints behind the training's back.

Training waits while its state is copied to host memory. A thread then writes this rank's
files; the first iteration at which all ranks' threads are done completes the checkpoint: rank
0 writes the manifest, gives the folder its name by one rename, moves `latest` there and
removes old ones. Until then nothing looks like a checkpoint, and whatever goes wrong leaves
the one before as it was. The thread never communicates: collectives are the main thread's.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from sid_scale.networks.tensor_file import Entry, Written, write_tensors
from sid_scale.ranks import on_first_rank
from sid_scale.zero import keeping
from sid_scale.zero.checkpoint import TrainingState, host_files, optimizer_counters
from sid_scale.zero.saved import FORMAT_VERSION, MANIFEST, STATE, TrainingStateError

HOST_SHARE = 0.5  # of the host's free memory that copies of the state may take

Files = dict[str, dict[str, Tensor]]  # file name -> tensors


class Completed(NamedTuple):
    """A checkpoint that has just become complete."""

    folder: Path
    gigabytes: float
    pause_seconds: float  # that training waited, on this rank
    write_seconds: float  # from the beginning of the save to its end


class CheckpointWriter:
    """Writes one run's checkpoints, one at a time. All methods are collective."""

    def __init__(self, folder: Path, *, keep: int, keep_every: int, write_behind: bool):
        self._folder = folder
        self._keep, self._keep_every = keep, keep_every
        self._write_behind = write_behind
        self._writing: _Writing | None = None

    def save(
        self, images_seen: int, state: TrainingState, counters: dict[str, Any]
    ) -> Completed | None:
        """Begins a checkpoint, after waiting for the one before; `counters` is JSON.

        -> what the one before has become, if it was still under way.

        Raises:
            TrainingStateError: the folder cannot be written to.
        """
        before = self.finish()
        began = time.perf_counter()
        partial = self._folder / f".{keeping.folder_name(images_seen)}.partial"
        on_first_rank(lambda: self._begin(partial))
        files = host_files(state)
        behind = self._write_behind and _fits_twice(files)
        if behind:
            files = _copies(files)
        told = {"optimizers": optimizer_counters(state), **counters}
        texts = {STATE: json.dumps(told, indent=2)} if dist.get_rank() == 0 else {}
        self._writing = _Writing(partial, files, texts, began)
        if not behind:
            self._writing.wait()
        self._writing.pause_seconds = time.perf_counter() - began
        return before

    def poll(self) -> Completed | None:
        """Completes the checkpoint under way, if all ranks have written their parts.

        One number is reduced while a checkpoint is under way, nothing otherwise.
        """
        if self._writing is None:
            return None
        done = torch.tensor(float(self._writing.is_done), device=_device())
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return self._complete() if done else None

    def finish(self) -> Completed | None:
        """Waits for the checkpoint under way, if there is one, and completes it."""
        return None if self._writing is None else self._complete()

    def _begin(self, partial: Path) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            keeping.sweep(self._folder)
            partial.mkdir()
        except OSError as error:
            raise self._failure(partial, f"{error}") from error

    def _complete(self) -> Completed:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, writing.outcome())
        failures = [
            f"rank {rank}: {outcome}"
            for rank, outcome in enumerate(outcomes)
            if isinstance(outcome, str)
        ]
        if failures:
            # What is there is room on a full disk; if even that fails, the next save sweeps.
            on_first_rank(lambda: shutil.rmtree(writing.partial, ignore_errors=True))
            raise self._failure(writing.partial, "; ".join(failures[:3]))
        files = {name: written for outcome in outcomes for name, written in outcome.items()}
        folder = on_first_rank(lambda: self._give_name(writing.partial, files))
        gigabytes = sum(written.bytes for written in files.values()) / 1e9
        seconds = time.perf_counter() - writing.began
        return Completed(folder, gigabytes, writing.pause_seconds, seconds)

    def _give_name(self, partial: Path, files: dict[str, Written]) -> Path:
        entries = {name: written._asdict() for name, written in sorted(files.items())}
        manifest = {"format_version": FORMAT_VERSION, "files": entries}
        folder = self._folder / partial.name.removeprefix(".").removesuffix(".partial")
        try:
            _write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
            _flush_folder(partial)
            os.replace(partial, folder)
            keeping.point(self._folder, keeping.LATEST, folder)
            _flush_folder(self._folder)
            keeping.retire(self._folder, self._keep, self._keep_every)
        except OSError as error:
            raise self._failure(partial, f"{error}") from error
        return folder

    def _failure(self, partial: Path, why: str) -> TrainingStateError:
        name = partial.name.removeprefix(".").removesuffix(".partial")
        found = keeping.checkpoints(self._folder)
        newest = f"{found[-1]} is untouched" if found else "there is none before it"
        return TrainingStateError(
            f"checkpoint {name} could not be written: {why}; {newest}. Make room or lift the "
            "restriction and start the same command again: resume: auto goes on from there"
        )


class _Writing:
    """This rank's part of a checkpoint, being written by a thread."""

    def __init__(self, partial: Path, files: Files, texts: dict[str, str], began: float):
        self.partial, self.began = partial, began
        self.pause_seconds = 0.0
        self._files, self._texts = files, texts
        self._outcome: dict[str, Written] | str = "was interrupted"
        # Not a daemon: leaving the program waits for it.
        self._thread = threading.Thread(target=self._write, name="checkpoint")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def outcome(self) -> dict[str, Written] | str:
        """What was written, or why it could not be; waits for it."""
        self.wait()
        return self._outcome

    def _write(self) -> None:
        try:
            written = {}
            for name, tensors in self._files.items():
                entries = [Entry(k, v.dtype, tuple(v.shape)) for k, v in tensors.items()]
                written[name] = write_tensors(self.partial / name, entries, tensors.values())
            for name, text in self._texts.items():
                written[name] = _write_text(self.partial / name, text)
            _flush_folder(self.partial)
            self._outcome = written
        except Exception as error:  # whatever it is, the ranks will hear of it
            self._outcome = f"{type(error).__name__}: {error}"
        self._files = {}  # the copies' memory


def _copies(files: Files) -> Files:
    return {
        name: {key: value.to("cpu", copy=True) for key, value in tensors.items()}
        for name, tensors in files.items()
    }


def _fits_twice(files: Files) -> bool:
    """Whether the host has room for a copy of what its ranks write."""
    nbytes = sum(value.nbytes for tensors in files.values() for value in tensors.values())
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or dist.get_world_size())
    return nbytes * ranks_here <= HOST_SHARE * psutil.virtual_memory().available


def _device() -> torch.device:
    """Where collectives of the process group want their tensors."""
    on_cuda = dist.get_backend() == dist.Backend.NCCL
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")


def _write_text(path: Path, text: str) -> Written:
    data = text.encode()
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Written(len(data), hashlib.sha256(data).hexdigest())


def _flush_folder(folder: Path) -> None:
    """Makes the folder's own entries survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
