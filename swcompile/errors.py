"""The one error that users of swcompile see."""


class SwnetError(Exception):
    """Report a request that cannot be carried out.

    The message says what was asked, what was found and what to do. Everything that goes wrong because of the input (a model, a
    plan, an option, a file) is raised as this class; any other exception is a bug of swcompile.
    """


class NothingToDoError(SwnetError):
    """Report a model in which nothing can be rewired, with the reason for each layer."""
