"""The one error that users of swcompile see."""


class SwnetError(Exception):
    """Report a request that cannot be carried out.

    The message says what was asked, what was found and what to do. Everything that goes wrong because of the input (a model, a
    plan, an option, a file) is raised as this class; any other exception is a bug of swcompile.
    """


class NothingToDoError(SwnetError):
    """Report a model in which nothing can be rewired, with the reason for each layer."""


def shown(value: object) -> str:
    """Return a value as messages repeat it: as Python writes it, and no longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its class where that says nothing: it may be the user's, and fail to."""
    try:
        lines = str(error).strip().splitlines()
    except KeyboardInterrupt:
        raise
    except BaseException:  # even SystemExit: it is the code of somebody's __str__
        lines = []
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
