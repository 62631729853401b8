"""The one error of the package that means: the input is wrong, and here is the way out."""

__all__ = ["InputError", "NonFiniteError"]


class InputError(ValueError):
    """Bad input from a user: a configuration, a file, a graph, a run folder.

    Its message is one line that names the thing, the value, the rule and what to do. The command line prints it
    without a traceback and exits with status 2. What a file can put into it, such as a name with a line break, is escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.splitlines())))


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite: names the stage, the step and the last good state."""
