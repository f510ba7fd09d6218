"""The one exception for input that a user can mend."""

#: Longest message. What it quotes may come from a file, and be of any length.
_LONGEST = 2000


class InputError(ValueError):
    """Bad input from outside: a file, an option, a rule.

    Its message is one line that names the thing, the value and the remedy. The command line
    prints that line and exits with status 2; any other exception is a bug and keeps its traceback.
    What cannot be printed on a line, such as a line end or a terminal's control code in a name
    that a file holds, becomes an escape; of more than 2,000 characters the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if not message.isprintable():
            message = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in message
            )
        if len(message) > _LONGEST:
            half = _LONGEST // 2 - 3
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(message)
