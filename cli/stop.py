"""Long work that a user may stop: it ends where nothing is lost."""

import signal
import time
from types import FrameType
from typing import Any, Self


class Stop:
    """Notes the first SIGINT or SIGTERM; one that comes a second later ends the process as ever.

    Not one at once, because `timeout` and the like send two: to the process, and to its group.

    Attributes
    ----------
    received
        Number of the signal; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > 1:
            self.__exit__()
            signal.raise_signal(number)
