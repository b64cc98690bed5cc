"""The process that reads a pickle: `main` is started by `reader.py`, with nothing else in it.

Standard input is the pickle, the argument a file for its storages (safetensors). Standard output
is the contents (JSON, see `tree.py`). The exit status is 1 if the pickle cannot be used, 2 if the
storages cannot be written; standard output is then the reason.

A hostile file ends this process and nothing else. Memory and CPU time are limited, and an audit
hook ends the process before Python imports, compiles, opens or starts anything. The process needs
only the standard library, and so starts in some 30 ms and 10 MB.
"""

import gc
import json
import os
import pickle
import resource
import sys
from io import BufferedReader
from types import SimpleNamespace
from typing import Any, NoReturn

from sid_scale.pickles.tree import Tree, write_storages
from sid_scale.pickles.unpickler import REMEDY, FileError, RestrictedUnpickler

MEMORY = 768 * 2**20  # bytes, beyond what the process has at its start and the file's size
SECONDS, BYTES_A_SECOND = 2, 50 * 10**6  # CPU time: a constant, and what the file's size adds
FAR_MORE = "far more than a network of its size: the file is damaged"
JSON_BYTES = 16 * 2**20
# Audit events of a reading. CPython passes some failures of its own Unpickler to the hook.
HARMLESS = ("builtins.id", "sys.excepthook")


def main() -> NoReturn:
    """Reads the pickle; never returns."""
    pickled = open(0, "rb", closefd=False)  # noqa: SIM115 - the process ends without closing
    storages = open(sys.argv[1], "wb")  # noqa: SIM115
    size = os.fstat(0).st_size
    gc.disable()  # the collector would scan millions of hostile values many times
    out_of_memory = (
        f"takes more than {(size + MEMORY) // 10**6} MB of memory to read, {FAR_MORE}. {REMEDY}"
    ).encode()
    confine(size)
    try:
        tree = Tree()
        output = _read(pickled, tree)
        needed = sum(storage.nbytes for storage in tree.storages)
        if needed > size:  # the same bytes in several uses
            raise FileError(f"has {size} bytes, but tensors of {needed}. {REMEDY}")
        write_storages(storages, tree.storages)
        storages.flush()
    except FileError as error:
        _end(1, str(error).encode())
    except MemoryError:
        _end(1, out_of_memory)
    except OSError as error:
        _end(2, (error.strerror or str(error)).encode())
    _end(0, output)


def _read(file: BufferedReader, tree: Tree) -> bytes:
    start = file.read(2)
    file.seek(0)
    if not start:
        raise FileError("empty; fetch it again")
    if start not in (pickle.PROTO + bytes([protocol]) for protocol in range(2, 6)):
        hint = " (but a zip archive, as torch.save makes them)" if start == b"PK" else ""
        raise FileError(
            f"no pickle of protocol 2 to 5{hint}. EDM's, EDM2's and SiD's networks are pickles in "
            "files named .pkl: name one of those, or fetch it again"
        )
    # Without `peek`, the Unpickler reads no more than an opcode or a frame in advance.
    exact: Any = SimpleNamespace(read=file.read, readline=file.readline, readinto=file.readinto)
    try:
        contents = RestrictedUnpickler(exact).load()
    except MemoryError:
        raise
    except Exception as error:  # of every kind, if the opcodes make no sense
        if isinstance(error, FileError):
            what = str(error)
        elif isinstance(error, EOFError) or "truncated" in str(error):
            what = "the file ends in the middle: it is damaged; fetch it again"
        else:
            reason = f"{type(error).__name__}: {ascii(str(error)[:200])[1:-1]}"
            what = f"the file is damaged, or no pickle ({reason}); fetch it again"
        raise FileError(f"before byte {file.tell()}: {what}") from None
    output = json.dumps(tree.value(contents)).encode()
    if len(output) > JSON_BYTES:
        raise FileError(f"holds {len(output)} bytes of settings, far more than a network. {REMEDY}")
    return output


def cpu_seconds(size: int) -> int:
    """The CPU time that reading a file of `size` bytes may take."""
    return SECONDS + size // BYTES_A_SECOND


def confine(size: int) -> None:
    """Limits what the process may use for a file of `size` bytes, and what Python may do."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: in_use + size + MEMORY,
        resource.RLIMIT_CPU: cpu_seconds(size),
    }
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if most < 0 else min(value, most), most))
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)
    sys.addaudithook(_forbid)


def _forbid(event: str, _: Any) -> None:
    """Ends the process when Python is about to do what reading has no need of."""
    if event not in HARMLESS:
        _end(1, f"tries to use Python ({event}); it was ended. {REMEDY}".encode())


def _end(status: int, output: bytes) -> NoReturn:
    """Ends the process at once: freeing millions of hostile values takes time."""
    while output:
        output = output[os.write(1, output) :]
    os._exit(status)
