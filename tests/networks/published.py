"""Writes networks in the format of EDM's, EDM2's and SiD's published files.

Their classes reduce themselves to one function with one dict, in which the source of the class's
module and the object's `__dict__` lie. That function and EDM's EasyDict are needed by name while
a file is written, and only then.
"""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sid_scale.networks.folder import CheckpointError
from sid_scale.networks.published import PublishedNetwork, read_published
from sid_scale.pickles.reader import PickleError

SOURCE = "import torch\n" * 100  # of a class's module; longer than what is kept in memory


def _reconstruct_persistent_obj(meta):
    return types.SimpleNamespace(**meta)  # the published one runs meta["module_src"] first


class EasyDict(dict):
    """A dict whose entries are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


@contextmanager
def published_code() -> Iterator[None]:
    """Makes the names that published files ask for importable."""
    contents = {
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": EasyDict},
    }
    for name, attributes in contents.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        yield
    finally:
        for name in contents:
            del sys.modules[name]


class Persistent:
    """An object of a persistent class; the class's name is all that a file knows of it."""

    module_source = SOURCE

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.module_source,
            "class_name": type(self).__name__,
            "state": dict(self.__dict__),
        }
        return _reconstruct_persistent_obj, (meta,), None


def persistent(class_name: str, *arguments: Any, base: type = object, **settings: Any) -> Any:
    """An object of a persistent class `class_name`, made with these arguments."""
    made = type(class_name, (Persistent, base), {})()
    made._init_args = arguments
    made._init_kwargs = settings
    return made


def write(path: Path, contents: Any, protocol: int = 4) -> Path:
    """Pickles, with the published names in place."""
    with published_code(), path.open("wb") as file:
        pickle.dump(contents, file, protocol)
    return path


def read(tmp_path: Path, network: Any, **others: Any) -> PublishedNetwork:
    """What comes back of a network in a file, and of what else it holds."""
    return read_published(write(tmp_path / "net.pkl", {"ema": network, **others}))


def refusal(tmp_path: Path, network: Any, **others: Any) -> str:
    """The error that such a file ends in."""
    with pytest.raises((PickleError, CheckpointError)) as caught:
        read(tmp_path, network, **others)
    assert str(tmp_path / "net.pkl") in str(caught.value)
    return str(caught.value)
