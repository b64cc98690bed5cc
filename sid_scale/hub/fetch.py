"""Fetching a model from the hub to huggingface_hub's cache."""

import os
import sys
from pathlib import Path

from sid_scale.errors import first_line
from sid_scale.hub.answers import explained, faults
from sid_scale.hub.names import HubError, Name, Place, is_commit

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
LIBRARY = "sid_scale"  # as the hub counts downloads


def fetch(name: Name, cache_dir: Place | None, ask: bool) -> Path:
    """The folder of a model in the cache (None: the hub's own); `ask`: whether to ask the hub.

    Raises:
        HubError: there is no such model, on the hub or in the cache.
        FetchError: the hub cannot be reached, or breaks off.
    """
    folder = _snapshot_of(name, cache_dir, ask)
    if not (folder / FILES[0]).is_file():
        raise HubError(f"{name} on the hub holds no {FILES[0]}: it is no network's folder")
    return folder


def _snapshot_of(name: Name, cache_dir: Place | None, ask: bool) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    ask = ask and not constants.HF_HUB_OFFLINE
    if not ask or is_commit(name.revision):
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
