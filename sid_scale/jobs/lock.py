"""One run folder is one run: `lock.json` there names who writes to it.

The file is made with O_EXCL, which network file systems honour, and its holder touches it every
few seconds. A lock whose holder is gone for certain, or has given no sign of life for minutes,
is taken over; a holder that finds its lock taken over ends at once.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

from sid_scale.atomic import atomic_write
from sid_scale.errors import SidScaleError
from sid_scale.jobs.slurm import current_job, is_running

LOCK = "lock.json"
TOUCH_SECONDS = 15.0
STALE_SECONDS = 300.0  # without a touch
BREAKING_SECONDS = 20.0  # that taking over a stale lock may take


class LockedError(SidScaleError):
    """Another run writes to the run folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    namespace: int  # of process ids: containers on one host have their own
    pid: int
    began: float  # when that process did, seconds since 1970
    job: str | None  # SLURM's
    restarts: int  # of the job
    cluster: str  # SLURM's; each has its own numbers of jobs
    taken: float  # seconds since 1970
    token: str

    @classmethod
    def ourselves(cls) -> "Holder":
        job = current_job()
        return cls(
            socket.gethostname(),
            os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0,
            os.getpid(),
            psutil.Process().create_time(),
            job.id if job else None,
            job.restarts if job else 0,
            job.cluster if job else "",
            time.time(),
            secrets.token_hex(8),
        )

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.taken))
        job = f"SLURM job {self.job}" if self.job else "a run"
        return f"{job} on {self.host} (process {self.pid}), since {since}"


def read_lock(run_dir: Path) -> Holder | None:
    """Who holds a run folder; None: it is free, or is being taken."""
    try:
        return Holder(**json.loads((run_dir / LOCK).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def why_stale(run_dir: Path) -> str | None:
    """Why the holder of `run_dir`'s lock is certainly gone; None: it may be alive."""
    holder = read_lock(run_dir)
    silent = _silence(run_dir)
    if silent > STALE_SECONDS:
        return f"it has given no sign of life for {silent:.0f} s"
    if holder is None:
        return None
    here = Holder.ourselves()
    if (holder.host, holder.namespace) == (here.host, here.namespace) and not _is_alive(holder):
        return "that process is gone"
    if holder.job is not None and (holder.cluster == here.cluster or not here.cluster):
        if holder.job == here.job and holder.restarts < here.restarts:
            return "that was this job before it was started again"
        if holder.job != here.job and is_running(holder.job) is False:
            return "that job has ended"
    return None


@contextmanager
def locked(run_dir: Path) -> Iterator[list[str]]:
    """Holds the run folder, which is made if it is missing, and removed again if nothing came of
    it; yields messages for the log.

    For one rank of a run.

    Raises:
        LockedError: another run holds it, or it cannot be written to.
    """
    new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        holder, messages = _take(run_dir)
    except OSError as error:
        raise LockedError(f"run_dir: {run_dir} cannot be written to: {error}") from error
    ended = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(run_dir, holder, ended), daemon=True)
    toucher.start()
    try:
        yield messages
    finally:
        ended.set()
        toucher.join()
        if read_lock(run_dir) == holder:
            with suppress(OSError):  # it will be stale
                (run_dir / LOCK).unlink()
                if new and not any(run_dir.iterdir()):
                    run_dir.rmdir()


def _take(run_dir: Path) -> tuple[Holder, list[str]]:
    path, holder = run_dir / LOCK, Holder.ourselves()
    patience = time.monotonic() + BREAKING_SECONDS
    while True:
        with suppress(FileExistsError), open(path, "x") as file:
            _write(file, holder)
            return holder, []
        found, stale = read_lock(run_dir), why_stale(run_dir)
        if stale is not None and _take_over(run_dir, holder):
            return holder, [f"took over the lock of {found or 'an unknown run'}: {stale}"]
        if path.exists() and (stale is None or time.monotonic() > patience):
            raise LockedError(_in_use(run_dir, found))


def _take_over(run_dir: Path, holder: Holder) -> bool:
    """Puts our lock in the place of a stale one, unless another process has or is about to."""
    breaking = run_dir / f".{LOCK}.breaking"
    try:
        open(breaking, "x").close()
    except FileExistsError:
        if _age(breaking) > BREAKING_SECONDS:
            breaking.unlink(missing_ok=True)  # of a process that died just then
        time.sleep(0.05)
        return False
    try:
        found = read_lock(run_dir)
        if why_stale(run_dir) is None or read_lock(run_dir) != found:
            return False
        with atomic_write(run_dir / LOCK) as partial, open(partial, "w") as file:
            _write(file, holder)
        return True
    finally:
        breaking.unlink(missing_ok=True)


def _write(file: TextIO, holder: Holder) -> None:
    json.dump(asdict(holder), file)
    file.flush()
    os.fsync(file.fileno())


def _in_use(run_dir: Path, holder: Holder | None) -> str:
    return (
        f"run_dir {run_dir} is in use by {holder or 'a run that has only just begun'}; last sign "
        f"of life {_silence(run_dir):.0f} s ago. Wait for it, stop it, or take another "
        f"run_dir; if it is dead for certain, remove {run_dir / LOCK}"
    )


def _is_alive(holder: Holder) -> bool:
    try:
        process = psutil.Process(holder.pid)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - holder.began) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _silence(run_dir: Path) -> float:
    """Seconds since the lock was touched; below 0: there is none."""
    return _age(run_dir / LOCK)


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the file server's clock; below 0: it is not there."""
    probe = path.with_name(f".{path.name}.now.{secrets.token_hex(4)}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()  # a folder that can only be read: clocks must do
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return -1.0


def _keep_touching(run_dir: Path, holder: Holder, ended: threading.Event) -> None:
    path = run_dir / LOCK
    while not ended.wait(TOUCH_SECONDS):
        found = read_lock(run_dir)
        if (found is not None and found.token != holder.token) or not _exists(path):
            # Another run may be writing: whatever else we write could harm it.
            print(f"error: the lock {path} was taken by {found}: this run ends", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        with suppress(OSError):
            os.utime(path)


def _exists(path: Path) -> bool:
    """Whether the lock is there; a file system that does not answer says nothing."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
