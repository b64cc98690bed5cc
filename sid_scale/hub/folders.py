"""Folders of networks, given as such or by names on the hub, which are fetched."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sid_scale.hub.fetch import WEIGHTS, fetch
from sid_scale.hub.names import NAMES, HubError, Place, at_revision, is_name, name_of, parse_name

OPTIONS = ("generator", "teacher", "guide", "network", "vae", "dinov2")
LISTS = ("start", "encoder")  # options that may be given several times


def local_folder(
    given: Place,
    *,
    revision: str | None = None,
    cache_dir: Place | None = None,
    ask: bool = True,
) -> Path:
    """The folder that is meant, which is fetched if it is named by its name on the hub.

    Args:
        given: a folder (or a file), which wins; or `user/repo`, or `user/repo@revision`.
        revision: branch, tag or commit, of a name without one.
        cache_dir: where to fetch to; by default the hub's cache.
        ask: whether the hub may be asked; otherwise what is in the cache has to do.

    Raises:
        HubError: there is no such folder, and no such model on the hub or in the cache.
        FetchError: the hub cannot be reached, or breaks off.
    """
    text = os.fspath(given)
    if os.path.exists(text):
        if revision is not None:
            raise HubError(f"{text} is here, and has no revision {revision}: names on the hub have")
        return Path(text)
    name = parse_name(text)
    if name is None:
        raise HubError(
            f"{text}: nothing is there, and it is no name of a model on the hub, which is {NAMES}"
        )
    return fetch(name if revision is None else at_revision(name, revision), cache_dir, ask)


def local_folders(given: Mapping[str, Place], *, ask: bool = True) -> dict[str, Path]:
    """`local_folder` of several, by the setting or argument that names each; errors say which."""
    found = {}
    for what, place in given.items():
        try:
            found[what] = local_folder(place, ask=ask)
        except HubError as error:
            raise type(error)(f"{what}: {error}") from error
    return found


def on_every_node(given: Mapping[str, Place]) -> dict[str, Path]:
    """`local_folders` for ranks: one of each node fetches, the same commit on all. Collective."""
    import torch.distributed as dist

    from sid_scale.ranks import while_others_wait  # imports DeepSpeed, which takes its time

    is_first, is_first_here = dist.get_rank() == 0, os.environ.get("LOCAL_RANK", "0") == "0"
    found = while_others_wait((lambda: local_folders(given)) if is_first else None)
    pinned: list[dict[str, str]] = [{}]
    if found is not None:
        pinned = [{what: _pinned(given[what], folder) for what, folder in found.items()}]
    dist.broadcast_object_list(pinned)
    fetches = is_first_here and not is_first
    fetched = while_others_wait((lambda: local_folders(pinned[0])) if fetches else None)
    return found or fetched or local_folders(pinned[0], ask=False)


def _pinned(given: Place, folder: Path) -> str:
    """What leads other ranks to the same contents, or nowhere."""
    if os.path.exists(given):
        return os.path.join(".", given)  # which is no name
    return name_of(folder) or str(folder)


def fill_options(
    options: argparse.Namespace,
    find: Callable[[Mapping[str, Place]], Mapping[str, Path]] = local_folders,
) -> None:
    """Puts what is on this machine in place of the networks that a command line names, which are
    fetched if need be.

    Raises:
        HubError: as `local_folder`; says which argument.
    """
    named: dict[str, Any] = {n: getattr(options, n, None) for n in (*OPTIONS, *LISTS)}
    given: dict[str, Place] = {f"--{n}": named[n] for n in OPTIONS if named[n] is not None}
    for place in named["start"] or ():
        given[f"--start {place}"] = place
    for encoder, file in named["encoder"] or ():
        if is_name(file):
            given[f"--encoder {encoder}"] = file
    found = find(given) if given else {}
    for name in OPTIONS:
        if named[name] is not None:
            setattr(options, name, found[f"--{name}"])
    if named["start"]:
        options.start = [found[f"--start {place}"] for place in named["start"]]
    if named["encoder"]:
        options.encoder = [
            (encoder, _weights(found.get(f"--encoder {encoder}", file)))
            for encoder, file in named["encoder"]
        ]


def _weights(place: Path) -> Path:
    """The file of weights that is meant by a file, or by a folder with one."""
    return place / WEIGHTS if place.is_dir() else place
