"""Networks by their names on the hub, `user/repo` or `user/repo@revision`, in place of folders.

What is fetched lies in huggingface_hub's cache (HF_HOME), in a folder for each commit, and is used
as any other folder. Only the files that a network's folder, a VAE's or a detector's has are
fetched: safetensors, JSON and plain texts, nothing that can carry code. HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sid_scale.errors import SidScaleError

Place = str | os.PathLike[str]  # a folder, or a name on the hub

WEIGHTS = "model.safetensors"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (
    "config.json",
    WEIGHTS,
    VAE_WEIGHTS,  # where the folder itself is a VAE's
    "vae/config.json",
    f"vae/{VAE_WEIGHTS}",
    "classes.txt",
    "samples.png",
    "README.md",
)
NAMES = "user/repo or user/repo@revision"
OPTIONS = ("generator", "teacher", "guide", "network", "vae", "dinov2")
LISTS = ("start", "encoder")  # options that may be given several times
LIBRARY = "sid_scale"  # as the hub counts downloads
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


class HubError(SidScaleError):
    """A name that leads to no network; the message says why and what to do."""

    exit_status = 2


class FetchError(HubError):
    """The hub cannot be reached, or breaks off; another start may do better."""

    exit_status = 1


class Name(NamedTuple):
    """A model on the hub."""

    repo: str
    revision: str | None = None  # branch, tag or commit; None: the newest

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_name(text: str) -> Name | None:
    """`user/repo` or `user/repo@revision`; None: it is neither."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    match = _NAME.fullmatch(text)
    if match is None:
        return None
    try:
        validate_repo_id(match["repo"])
    except HFValidationError:
        return None
    return Name(match["repo"], match["revision"])


def is_name(place: Place) -> bool:
    """Whether something may be a name on the hub; a folder of that name would win."""
    return parse_name(os.fspath(place)) is not None


def name_of(folder: Place) -> str | None:
    """`user/repo@commit` of a folder, or a file, in the hub's cache; None: it is elsewhere."""
    match = _SNAPSHOT.search(os.path.abspath(folder))
    return f"{match[1]}/{match[2]}@{match[3]}" if match else None


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
    if revision is not None and name.revision is not None:
        raise HubError(f"{text} names a revision already: give that or {revision}, not both")
    return _fetch(name._replace(revision=name.revision or revision), cache_dir, ask)


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


def _fetch(name: Name, cache_dir: Place | None, ask: bool) -> Path:
    folder = _snapshot_of(name, cache_dir, ask)
    if not (folder / FILES[0]).is_file():
        raise HubError(f"{name} on the hub holds no {FILES[0]}: it is no network's folder")
    return folder


def _snapshot_of(name: Name, cache_dir: Place | None, ask: bool) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    ask = ask and not constants.HF_HUB_OFFLINE
    is_pinned = name.revision is not None and _COMMIT.fullmatch(name.revision)
    if not ask or is_pinned:
        try:
            folder = _snapshot(name, cache_dir, ask=False)
            if not ask or _has_weights(folder):
                return folder
        except LocalEntryNotFoundError as error:
            if not ask:
                raise _not_cached(name, cache_dir) from error
    try:
        # A snapshot would be asked for without a limit: a firewall that is silent holds it.
        HfApi(library_name=LIBRARY).repo_info(
            name.repo, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except RevisionNotFoundError as error:
        raise explained(error, name) from error
    except faults() as error:
        try:
            folder = _snapshot(name, cache_dir, ask=False)
        except LocalEntryNotFoundError:
            raise explained(error, name) from error
        why = f"{constants.ENDPOINT} does not give it ({first_line(error)})"
        print(f"note: {name}: {why}; it is taken from the cache, {folder}", file=sys.stderr)
        return folder
    try:
        return _snapshot(name, cache_dir, ask=True)
    except faults() as error:
        raise explained(error, name) from error


def _has_weights(folder: Path) -> bool:
    """Whether a folder in the cache is whole: other programs, and fetches that end, leave parts."""
    if (folder / "vae").is_dir() and not (folder / "vae" / VAE_WEIGHTS).is_file():
        return False
    return (folder / WEIGHTS).is_file() or (folder / VAE_WEIGHTS).is_file()


def _snapshot(name: Name, cache_dir: Place | None, *, ask: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name.repo,
            revision=name.revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            allow_patterns=list(FILES),
            library_name=LIBRARY,
            local_files_only=not ask,
        )
    )


def _not_cached(name: Name, cache_dir: Place | None) -> HubError:
    from huggingface_hub import constants

    what = name.repo if name.revision is None else f"{name.repo} --revision {name.revision}"
    return HubError(
        f"{name}: there is no such folder here, it is not in the hub's cache "
        f"({cache_dir or constants.HF_HUB_CACHE}), and the hub is not to be asked "
        f"(HF_HUB_OFFLINE): fetch it where there is a network, by `hf download {what}`, or name a "
        "folder"
    )


def faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises if the hub, the network or the disk is at fault."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its HTTP library has changed twice: the errors of a connection are the siblings of this one.
    of_http = _exceptions(HfHubHTTPError.__bases__)
    return OSError, ValueError, TypeError, LookupError, RuntimeError, *of_http


def _exceptions(types: tuple[type, ...]) -> list[type[Exception]]:
    return [kind for kind in types if issubclass(kind, Exception)]


def explained(error: Exception, name: Name) -> HubError:
    """An error of huggingface_hub's in one line that says what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{name.repo}"
    status = status_of(error)
    if isinstance(error, GatedRepoError):
        return HubError(f"{name} is gated: ask for access at {page}, and {LOG_IN}")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{name}: {page} has no revision {name.revision or 'main'}")
    unknown = status == 404 or (status == 401 and get_token() is None)
    if isinstance(error, RepositoryNotFoundError) or unknown:
        return HubError(
            f"{name}: there is no such folder here, and no such model at {hub}, or it is private: "
            f"mind the spelling; for a private one {LOG_IN}"
        )
    if status in (401, 403):
        return HubError(f"{name}: {hub} refuses the access token ({first_line(error)}): {LOG_IN}")
    return FetchError(
        f"{name}: there is no such folder here, and it cannot be fetched from {hub} "
        f"({first_line(error)}): try again, or name a folder"
    )


def status_of(error: BaseException) -> int | None:
    """HTTP status of what the hub answered; None: it did not."""
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def first_line(error: BaseException) -> str:
    """The first line that an error has to say."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
