"""What SIGINT, SIGTERM and SIGHUP do: a command ends, and where it can, where nothing is lost."""

import os
import select
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Self

from scotopia.graph.processes import kill_children, one_folder

#: Seconds that the main thread has to heed a signal: it cannot while a library computes.
PATIENCE = 1.0

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks the command to end."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the process at a signal: one line, status 128 + its number, no process or file left.

    What runs in here gets `Interrupted`, and `PATIENCE` to end by itself. Who handles a signal in
    another way meanwhile, as `Stop`, is let alone; if it then exits with that status, the process
    ends at once, so that a second signal finds no handler of another kind. Signals that were
    ignored stay so.
    """
    with one_folder() as folder:
        received: list[int] = []
        ending = threading.Lock()

        def interrupt(number: int, _frame: FrameType | None) -> None:
            if not received:
                received.append(number)
                warnings.simplefilter("ignore")  # of what was begun and is not used
                raise Interrupted

        def watch() -> None:
            with os.fdopen(reader, "rb", buffering=0) as signals:
                while number := signals.read(1):  # nothing once the other end is closed
                    if signal.getsignal(number[0]) is interrupt:
                        deadline = time.monotonic() + PATIENCE
                        while (left := deadline - time.monotonic()) > 0:
                            if select.select([signals], [], [], left)[0] and not signals.read(1):
                                return
                        end(number[0])

        def end(number: int) -> NoReturn:
            ending.acquire()  # once, for which of the two threads comes first
            kill_children()
            with suppress(OSError, ValueError):
                if sys.stdout.isatty():
                    sys.stdout.write("\x1b[?25h\n")  # the cursor that a progress bar hides
                sys.stdout.flush()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            with suppress(OSError, ValueError):
                print(f"scotopia: ended by {name}", file=sys.stderr)
            leave(number)

        def leave(number: int) -> NoReturn:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            # Not by an exception: that would wait for all threads, which compute.
            os._exit(128 + number)

        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {
            number: signal.signal(number, interrupt)
            for number in _NUMBERS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        except Interrupted:
            end(received[0])
        except SystemExit as stopped:
            for number in _NUMBERS:
                if stopped.code == 128 + number:  # by `Stop`, which has told
                    received.append(number)
                    ending.acquire()
                    leave(number)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(writer)


class Stop:
    """Notes the first SIGINT or SIGTERM; one that comes a second later ends the process as ever.

    Not one at once, because `timeout` and the like send two: to the process, and to its group. So
    it goes on noting them where the process is about to end for the first.

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

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not (self.received and isinstance(error, SystemExit)):
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > 1:
            self._restore()
            signal.raise_signal(number)
