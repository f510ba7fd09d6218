"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input from outside: a file, an option, a rule.

    Its message is one line that names the thing, the value and the remedy. The command line
    prints that line and exits with status 2; any other exception is a bug and keeps its traceback.
    """
