"""What huggingface_hub says if something is at fault, in a line that says what to do."""

from typing import Any

from sid_scale.errors import first_line
from sid_scale.hub.names import FetchError, HubError, Name

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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
