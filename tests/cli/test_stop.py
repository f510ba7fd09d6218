import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = """
import os, signal, subprocess, sys, tempfile, time
from scotopia.cli import stop
stop.PATIENCE = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
with stop.ended_by_signals():
    print(subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"]).pid, flush=True)
    tempfile.mkdtemp()
    time.sleep(0.1)
    {}
"""

HEEDED = "os.kill(os.getpid(), {0}); time.sleep(60)"

#: As a library does that computes for minutes, or catches what it should not.
STUCK = """
    try:
        os.kill(os.getpid(), {0})
    except stop.Interrupted:
        time.sleep(60)
"""


@pytest.mark.parametrize("work", [HEEDED, STUCK], ids=["heeded", "stuck"])
@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_ends_a_command_with_one_line_and_nothing_left(
    number: signal.Signals,
    name: str,
    work: str,
    is_alive: Callable[[int], bool],
    tmp_path: Path,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(work.format(int(number)))],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (128 + number, f"scotopia: ended by {name}\n")
    started = [int(line) for line in ended.stdout.split()]
    assert len(started) == 2
    assert not any(map(is_alive, started))
    assert list(tmp_path.iterdir()) == []


#: As a training does, in the middle of which a signal comes, and another behind it.
STOPPED = """
    import atexit
    again = lambda: (os.kill(os.getpid(), {0}), time.sleep(0.05))
    atexit.register(again)
    try:
        with stop.Stop() as noted:
            os.kill(os.getpid(), {0})
            print("stopped")
            raise SystemExit(128 + noted.received)
    finally:
        again()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_behind_a_stop_changes_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = COMMAND.replace('"sleep 60 & echo $!; wait"', '"true"')
    ended = subprocess.run(
        [sys.executable, "-c", command.format(STOPPED.format(int(number)))],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (128 + number, "")
    assert ended.stdout.endswith("stopped\n")  # which was in a buffer
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_was_ignored_stays_so(tmp_path: Path) -> None:
    work = "os.kill(os.getpid(), signal.SIGHUP)"
    text = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + COMMAND.format(work)
    ended = subprocess.run(
        [sys.executable, "-c", text + "    stop.kill_children()"],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
