"""The one kind of error that is the user's to mend."""


class SidScaleError(ValueError):
    """Something given to the program cannot be used, or a run cannot go on.

    The message says what, where and what to do; programs print it without a traceback.
    """
