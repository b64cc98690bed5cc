"""Opens pickles from untrusted sources; a process of its own reads the file (`process.py`)."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from torch import Tensor

from sid_scale.errors import SidScaleError
from sid_scale.pickles.process import FAR_MORE, cpu_seconds

# Wall-clock limit of the process, for file systems that hang. CPU time has a limit of its own; on a
# busy machine that takes many times as long.
SECONDS, BYTES_A_SECOND = 60, 2 * 10**6
_ROOT = Path(__file__).parents[2]
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from sid_scale.pickles.process import main; main()"
)
STORAGES = "storages.safetensors"


class PickleError(SidScaleError):
    """A pickle that cannot be used; the message says which, where in it, why and what to do."""


@dataclass(frozen=True, eq=False)
class PickledObject:
    """An object that was not made.

    Of one of EDM's persistent classes the class's name alone, else "module.name".
    """

    class_name: str
    state: dict[str, Any]  # its attributes; empty for what is neither of those nor a module


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A tensor, or an array of numpy, that is loaded when it is asked for."""

    file: Path
    storage: str
    dtype: str  # safetensors' name
    stored_bytes: int  # of its storage, which other tensors may share
    offset: int  # in elements, as `stride`
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """The tensor: contiguous, on the CPU, in the file's dtype."""
        with safe_open(self.file, "pt") as file:
            storage = file.get_tensor(self.storage)
        # A copy: the file goes, and the storage may be larger.
        return storage.as_strided(self.shape, self.stride, self.offset).clone().contiguous()


@contextmanager
def open_pickle(
    path: str | os.PathLike[str], scratch: str | os.PathLike[str] | None = None
) -> Iterator[Any]:
    """The contents of a pickle; its tensors can be loaded until it is closed.

    They are None, bool, int, float, str, list (also for tuples and sets), dict (texts as keys),
    `PickledObject` and `PickledTensor`.

    Args:
        path: the file.
        scratch: a folder with room for the tensors; None: the system's for temporary files.

    Raises:
        PickleError: it cannot be read, is no pickle of protocol 2 to 5, or damaged, takes far too
            much time or memory, or asks for a name that published files have no need of.
    """
    where = str(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe may last for ever
            raise PickleError(f"{where}: cannot be read: not a file")
        file = open(path, "rb")  # noqa: SIM115 - the `with` is below
    except OSError as error:
        raise PickleError(f"{where}: cannot be read: {error.strerror}") from error
    try:
        folder = tempfile.TemporaryDirectory(prefix=".pickle-", dir=scratch)
    except OSError as error:
        file.close()
        place = scratch or tempfile.gettempdir()
        raise PickleError(f"{place}: cannot be written: {error.strerror}") from error
    with file, folder as name:
        storages = Path(name, STORAGES)
        yield _decode(json.loads(_read(file, storages, where)), storages)


def _read(file: BinaryIO, storages: Path, where: str) -> bytes:
    """The contents as JSON; the tensors are then in `storages`."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_ROOT), str(storages)]
    size = os.fstat(file.fileno()).st_size
    seconds = SECONDS + size // BYTES_A_SECOND
    remedy = "Nothing in it was run. Take the file from its publisher"
    try:
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PickleError(f"{where}: not read after {seconds} seconds. {remedy}") from None
    if done.returncode == 0:
        return done.stdout
    reason = done.stdout.decode(errors="replace")
    if reason and done.returncode == 2:
        raise PickleError(f"{storages.parent.parent}: cannot be written: {reason}")
    if reason:
        raise PickleError(f"{where}: {reason}")
    if done.returncode == -signal.SIGXCPU:
        raise PickleError(
            f"{where}: takes more than {cpu_seconds(size)} seconds of CPU time to read, "
            f"{FAR_MORE}. {remedy}"
        )
    last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    raise PickleError(
        f"{where}: crashes the process that reads it (exit status {done.returncode}"
        f"{last_line and ', '}{ascii(last_line)[1:-1]}). {remedy}"
    )


def _decode(node: Any, storages: Path) -> Any:
    """Values from their description in JSON (`tree.py`)."""
    if not isinstance(node, list):
        return node
    kind, *parts = node
    if kind == "list":
        return [_decode(item, storages) for item in parts[0]]
    if kind == "tensor":
        storage, dtype, size, offset, shape, stride = parts
        return PickledTensor(storages, storage, dtype, size, offset, tuple(shape), tuple(stride))
    entries = {key: _decode(value, storages) for key, value in parts[-1].items()}
    return entries if kind == "dict" else PickledObject(parts[0], entries)
