"""Processes of `compare_methods.py`: its runs, some at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from compare_job import Job, result_file

TOOLS = Path(__file__).parent


def run_all(jobs: Sequence[Job], work: Path, at_once: int) -> list[Job]:
    """Runs what has no result yet; returns the jobs that failed.

    Rows that go on from another come last.
    """
    missing = [job for job in jobs if not result_file(work, job).is_file()]
    failed = []
    for later in (False, True):
        turn = [job for job in missing if (job.before() is not None) == later]
        with Workers(work, at_once) as workers:
            failed += [job for job, done in zip(turn, workers.map(turn)) if not done]
    return failed


class Workers:
    """Runs jobs in processes of their own, some at once. None of them outlives this context."""

    def __init__(self, work: Path, at_once: int):
        self._work, self._pool = work, ThreadPoolExecutor(at_once)
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            process.terminate()

    def map(self, jobs: Sequence[Job]) -> Iterator[bool]:
        """Whether each job left a result, in their order."""
        return self._pool.map(self._run, jobs)

    def _run(self, job: Job) -> bool:
        process = tool(self._work, f"{job.name}.log", "compare_run.py", json.dumps(asdict(job)))
        self._running.add(process)
        process.wait()
        self._running.remove(process)
        done = result_file(self._work, job).is_file()
        outcome = "done" if done else "FAILED"
        rate = "" if job.rate is None else f", rates x{job.rate:g}"
        print(f"{outcome}: {job.row}, seed {job.seed}{rate}", flush=True)
        return done


def tool(work: Path, log: str, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts one of the tools on one thread; what it says goes to a file in `work`."""
    with open(work / log, "w") as said:
        return subprocess.Popen(
            [sys.executable, str(TOOLS / script), str(work), *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
