"""What `bench_step.py` measures of a device and of an iteration, beside its time."""

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from step_clock import StepClock
from torch.profiler import ProfilerActivity, profile

WAITS = "called a synchronizing CUDA operation"  # what torch warns of
ROWS = 30  # of a profile's table


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a product of two large square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    clock = StepClock(device)
    clock.start()
    for _ in range(2):
        torch.mm(a, b)
    (milliseconds,) = clock.stop().values()
    return 2 * 2 * side**3 / (milliseconds / 1000)


class PeakPrivateMemory:
    """Inside, a thread watches how many bytes this process has for itself; `nbytes` is the peak."""

    def __enter__(self) -> "PeakPrivateMemory":
        self.nbytes, self._over = private_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.nbytes = max(self.nbytes, private_memory())


def private_memory() -> int:
    """Bytes of memory that belong to this process alone."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def synchronisations(action: Callable[[], object]) -> int:
    """How often the host waits for the GPU in `action`: calls that torch warns of, and those of
    `synchronize`, of which it does not."""
    calls = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            return function(*given, **options)

        return call

    with ExitStack() as stack:
        for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            waits = counted(owner.synchronize)
            stack.enter_context(patch.object(owner, "synchronize", waits))
        told = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, before)
        action()
        return calls + sum(WAITS in str(warning.message) for warning in told)


def write_profile(action: Callable[[], object], path: Path, device: torch.device) -> None:
    """Profiles `action`: a table of its operators in `path`.txt, a trace in `path`.json, which
    ui.perfetto.dev shows."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        action()
    path.parent.mkdir(parents=True, exist_ok=True)
    order = f"self_{device.type}_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=ROWS)
    path.with_suffix(".txt").write_text(table)
    profiled.export_chrome_trace(str(path.with_suffix(".json")))
