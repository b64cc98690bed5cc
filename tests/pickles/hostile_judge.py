"""Imports each file of a folder in a process of its own and says what became of it.

`python -m tests.pickles.hostile_judge FOLDER` prints a JSON object: name of a file -> error,
seconds of CPU time, peak memory in bytes, and what was executed. `warm_up*` are networks: importing
them first has Python load all that it loads on demand, so that what a file executes stands out.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from sid_scale.errors import SidScaleError
from sid_scale.networks.published import import_published

# Audit events of code being made, loaded, found or started.
EXECUTION = {
    *{"compile", "exec", "import", "code.__new__", "pickle.find_class", "ctypes.dlopen"},
    *{"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"},
}


def judge(file: Path) -> dict[str, Any]:
    """Imports a file in a child; what it is killed by, if it is, counts as its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(120)  # seconds; the CPU time, which a busy machine leaves, is less
        verdict = _import(file)
        os.write(writer, json.dumps(verdict).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"error": f"killed by signal {os.WTERMSIG(status)}"}


def _import(file: Path) -> dict[str, Any]:
    executed: list[str] = []
    sys.addaudithook(lambda event, _: executed.append(event) if event in EXECUTION else None)
    error = "none"
    before = cpu_seconds()
    try:
        import_published(file, file.with_suffix(".out"))
    except SidScaleError as refusal:
        error = str(refusal)
    except BaseException as crash:
        error = f"not a clear error: {crash!r:.500}"
    seconds = cpu_seconds() - before
    executed.remove("subprocess.Popen")  # the process that reads the file; it watches itself
    # An upper bound: they need not have their peaks at the same time.
    peak = peak_memory() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"error": error, "seconds": seconds, "peak": peak, "executed": executed}


def cpu_seconds() -> float:
    """The CPU time of this process and of those that it has started and awaited."""
    spent = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def peak_memory() -> int:
    """The most memory that this process has had at once, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for network in sorted(folder.glob("warm_up*")):
        import_published(network, network.with_suffix(".out"))
    verdicts = {file.stem: judge(file) for file in sorted(folder.glob("*.pkl"))}
    print(json.dumps(verdicts))
