"""Names of models on the hub, `user/repo` or `user/repo@revision`."""

import os
import re
from typing import NamedTuple

from sid_scale.errors import SidScaleError

Place = str | os.PathLike[str]  # a folder, or a name on the hub

NAMES = "user/repo or user/repo@revision"

# As Git has them; one with `..` would also lead out of the cache, where revisions are files.
_REVISION = r"(?!.*\.\.)[^\s/@~^:?*\[\\][^\s@~^:?*\[\\]*"
_NAME = re.compile(rf"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>{_REVISION}))?", re.ASCII)
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


def at_revision(name: Name, revision: str) -> Name:
    """A model at a branch, a tag or a commit.

    Raises:
        HubError: it has one already, or there can be none of that name.
    """
    if name.revision is not None:
        raise HubError(f"{name} names a revision already: give that or {revision}, not both")
    if not re.fullmatch(_REVISION, revision, re.ASCII):
        raise HubError(
            f"{name.repo}: {revision!r:.80} is no revision: a branch, a tag or a commit is wanted"
        )
    return name._replace(revision=revision)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_name(place: Place) -> bool:
    """Whether something may be a name on the hub; a folder of that name would win."""
    return parse_name(os.fspath(place)) is not None


def name_of(folder: Place) -> str | None:
    """`user/repo@commit` of a folder, or a file, in the hub's cache; None: it is elsewhere."""
    match = _SNAPSHOT.search(os.path.abspath(folder))
    return f"{match[1]}/{match[2]}@{match[3]}" if match else None
