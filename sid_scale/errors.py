"""The one kind of error that is the user's to mend, and how programs print errors."""

import os
import signal
import sys

# That a rank leaves rank 0 to meet and print the same error: they start at different speeds.
FIRST_RANK_SECONDS = 30.0


class SidScaleError(ValueError):
    """Something given to the program cannot be used, or a run cannot go on.

    The message says what, where and what to do; programs print it without a traceback and end
    with `exit_status`: 2 for settings and arguments at fault, 1 for all else.
    """

    exit_status = 1
    is_user_error = True  # whether another start would meet it again
    sick_nodes: tuple[str, ...] = ()  # nodes that are to blame
    told_by_this_rank = False  # whether rank 0, which tells what all ranks meet, may not meet it


class UsageError(SidScaleError):
    """An argument of a command that cannot be used."""

    exit_status = 2


def first_line(error: BaseException) -> str:
    """The first line that an error has to say."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def launched_rank() -> int:
    """This process's rank as the launcher names it, before the ranks are joined."""
    return int(os.environ.get("RANK", "0"))


def print_once(error: BaseException) -> None:
    """Prints an error that ranks have met before they are joined, once."""
    if launched_rank() == 0 or getattr(error, "told_by_this_rank", False):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        # The launcher ends all ranks when one ends, by SIGTERM: rank 0 must print first.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.sigtimedwait([signal.SIGTERM], FIRST_RANK_SECONDS)
