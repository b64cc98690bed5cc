"""Writing checkpoints while training goes on.

Training waits while its state is copied to host memory. A thread then writes this rank's
files; the first iteration at which all ranks' threads are done completes the checkpoint: rank
0 writes the manifest, gives the folder its name by one rename, then moves `latest` there and
removes old ones. Until then nothing looks like a checkpoint, and whatever goes wrong leaves
the one before as it was. The thread never communicates: collectives are the main thread's.
"""

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch.distributed as dist
from torch import Tensor

from sid_scale.atomic import flush_folder, write_durably
from sid_scale.ranks import on_first_rank
from sid_scale.tensor_file import Entry, Written, write_tensors
from sid_scale.zero import retention
from sid_scale.zero.checkpoint import TrainingState, describe_state, host_files
from sid_scale.zero.saved import FORMAT_VERSION, MANIFEST, STATE, TrainingStateError

HOST_SHARE = 0.5  # of the host's free memory that copies of the state may take

Files = dict[str, dict[str, Tensor]]  # file name -> tensors


class Completed(NamedTuple):
    """A checkpoint that has just become complete."""

    folder: Path
    gigabytes: float
    pause_seconds: float  # that training waited for it, on the rank that waited longest
    write_seconds: float  # from the beginning of the save to its end
    messages: list[str]  # what went wrong on the way and harms nothing, on rank 0


class CheckpointWriter:
    """Writes one run's checkpoints, one at a time. All methods are collective."""

    def __init__(self, folder: Path, *, keep: int, keep_every: int, async_save: bool):
        self._folder = folder
        self._keep, self._keep_every = keep, keep_every
        self._async_save = async_save
        self._writing: _Writing | None = None

    def save(
        self, images_seen: int, state: TrainingState, counters: dict[str, Any]
    ) -> Completed | None:
        """Begins a checkpoint, after waiting for the one before; `counters` is JSON.

        -> what the one before has become, if it was still under way.

        Raises:
            TrainingStateError: the folder cannot be written to.
        """
        began = time.perf_counter()
        before = self.finish()
        name = retention.folder_name(images_seen)
        on_first_rank(lambda: self._begin(name))
        files = host_files(state)
        asynchronous = self._async_save and _has_room_for(files)
        if asynchronous:
            files = _copies(files)
        stored = {**describe_state(state), **counters}
        texts = {STATE: json.dumps(stored, indent=2)} if dist.get_rank() == 0 else {}
        self._writing = _Writing(name, self._partial(name), files, texts, began)
        if not asynchronous:
            self._writing.wait()
        self._writing.pause_seconds = time.perf_counter() - began
        return before

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part of a checkpoint is still being written. Not collective."""
        return self._writing is not None and not self._writing.is_done

    def finish(self) -> Completed | None:
        """Waits for the checkpoint under way, if there is one, and completes it."""
        return None if self._writing is None else self._complete()

    def _partial(self, name: str) -> Path:
        return self._folder / f".{name}.partial"

    def _begin(self, name: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            retention.clean_partial(self._folder)
            self._partial(name).mkdir()
        except OSError as error:
            raise self._failure(name, f"{error}") from error

    def _complete(self) -> Completed:
        assert self._writing is not None
        began = time.perf_counter()
        writing, self._writing = self._writing, None
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, (writing.outcome(), writing.pause_seconds))
        parts, pauses = zip(*outcomes, strict=True)
        failures = [f"rank {rank}: {p}" for rank, p in enumerate(parts) if isinstance(p, str)]
        if failures:
            # What is there is room on a full disk; if even that fails, the next save sweeps.
            partial = self._partial(writing.name)
            on_first_rank(lambda: shutil.rmtree(partial, ignore_errors=True))
            raise self._failure(writing.name, "; ".join(failures[:3]))
        files: dict[str, Written] = {name: w for part in parts for name, w in part.items()}
        folder = on_first_rank(lambda: self._give_name(writing.name, files))
        messages = on_first_rank(lambda: self._tidy(folder))
        gigabytes = sum(written.bytes for written in files.values()) / 1e9
        now = time.perf_counter()
        return Completed(
            folder, gigabytes, max(pauses) + now - began, now - writing.began, messages
        )

    def _give_name(self, name: str, files: dict[str, Written]) -> Path:
        entries = {file: written._asdict() for file, written in sorted(files.items())}
        manifest = {"format_version": FORMAT_VERSION, "files": entries}
        partial, folder = self._partial(name), self._folder / name
        try:
            _write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
            flush_folder(partial)
            os.replace(partial, folder)
            flush_folder(self._folder)
        except OSError as error:
            raise self._failure(name, f"{error}") from error
        return folder

    def _tidy(self, folder: Path) -> list[str]:
        """Moves `latest` and removes old ones: the new one is safe, whatever becomes of that."""
        try:
            retention.link(self._folder, retention.LATEST, folder)
            retention.prune(self._folder, self._keep, self._keep_every)
        except OSError as error:
            return [f"old checkpoints in {self._folder} could not be tidied up: {error}"]
        return []

    def _failure(self, name: str, why: str) -> TrainingStateError:
        found = [p for p in retention.checkpoints(self._folder) if p.name != name]
        newest = f"{found[-1]} is untouched" if found else "there is none before it"
        return TrainingStateError(
            f"checkpoint {name} could not be written: {why}; {newest}. Make room or lift the "
            "restriction and start the same command again: resume: auto goes on from there"
        )


class _Writing:
    """This rank's part of a checkpoint, being written by a thread."""

    def __init__(self, name: str, partial: Path, files: Files, texts: dict[str, str], began: float):
        self.name, self.began = name, began
        self.pause_seconds = 0.0
        self._partial, self._files, self._texts = partial, files, texts
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
                written[name] = write_tensors(self._partial / name, entries, tensors.values())
            for name, text in self._texts.items():
                written[name] = _write_text(self._partial / name, text)
            flush_folder(self._partial)
            self._outcome = written
        except Exception as error:  # reported by all ranks together
            self._outcome = f"{type(error).__name__}: {error}"
        self._files = {}  # the copies' memory


def _copies(files: Files) -> Files:
    return {
        name: {key: value.to("cpu", copy=True) for key, value in tensors.items()}
        for name, tensors in files.items()
    }


def _has_room_for(files: Files) -> bool:
    """Whether every host has room for a copy of what its ranks write. Collective."""
    nbytes = sum(value.nbytes for tensors in files.values() for value in tensors.values())
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, (socket.gethostname(), nbytes, _free_memory()))
    wanted: dict[str, int] = {}
    for host, nbytes, _ in hosts:
        wanted[host] = wanted.get(host, 0) + nbytes
    return all(wanted[host] <= HOST_SHARE * free for host, _, free in hosts)


def _free_memory() -> int:
    """Bytes that this process may still use: the host's, or what its control group leaves."""
    return min([psutil.virtual_memory().available, *_left_in_control_groups()])


def _left_in_control_groups() -> Iterator[int]:
    """What SLURM, a container or systemd leaves this process (cgroup v2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no Linux
    for path in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        own = Path("/sys/fs/cgroup") / path
        for group in (own, *own.parents):
            limit, used = group / "memory.max", group / "memory.current"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                yield int(most) - int(used.read_text())


def _write_text(path: Path, text: str) -> Written:
    data = text.encode()
    write_durably(path, data)
    return Written(len(data), hashlib.sha256(data).hexdigest())
