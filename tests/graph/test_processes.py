import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.model import native
from scotopia.model.rule import Rule
from scotopia.model.unroll import unroll, unroll_plainly

Make = Callable[..., Any]  # a fixture of conftest.py


def test_environment_is_made_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COCOTB_TESTCASE", "COCOTB_TEST_FILTER", "GPI_USERS", "MAKEFLAGS", "LANGUAGE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    made = processes.environment(VERILATOR_ROOT="/v")
    assert set(made) <= {*processes.KEPT, "LC_ALL", "TMPDIR", "VERILATOR_ROOT"}
    assert (made["LC_ALL"], made["VERILATOR_ROOT"]) == ("C.UTF-8", "/v")
    assert made["PATH"] == os.environ["PATH"]
    with processes.in_environment(VERILATOR_ROOT="/v"):
        assert dict(os.environ) == made
    assert os.environ["GPI_USERS"] == "x"


@pytest.mark.parametrize("home", ["/proc/none", "", "relative"])
def test_caches_lie_in_a_temporary_folder_without_a_home(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    caches = Path(processes.environment()["XDG_CACHE_HOME"])
    assert caches.is_dir() and caches.parent == Path(tempfile.gettempdir())
    assert processes.environment()["XDG_CACHE_HOME"] == str(caches)


def test_home_that_can_be_written_has_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "XDG_CACHE_HOME" not in processes.environment()


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("a b", 0, "has a space in its name, which make cannot take"),
        ("noexec", os.ST_NOEXEC, "is mounted noexec, so that no program can run there"),
        ("missing", 0, "cannot be written"),
    ],
)
def test_temporary_folder_of_no_use_gives_way_to_another_or_is_named(
    name: str, flags: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = tmp_path / name, tmp_path / "good"
    good.mkdir()
    if name != "missing":
        bad.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(bad))
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_flag=flags if path == str(bad) else 0)
    )
    monkeypatch.setattr(processes, "PLACES", (str(good),))
    with processes.temporary_folder() as folder:
        assert Path(folder).parent == good
    monkeypatch.setattr(processes, "PLACES", ())
    with pytest.raises(InputError) as caught:
        processes.temporary_folder()
    assert str(caught.value) == f"temporary folder {bad} {sentence}: set TMPDIR to another"
    with processes.one_folder() as none:  # not every command needs one
        assert none is None


def test_program_that_takes_too_long_is_killed_with_all_it_started(
    is_alive: Callable[[int], bool], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as output, pytest.raises(subprocess.TimeoutExpired):
        processes.run(["sh", "-c", "sleep 60 & echo $!; wait"], output, timeout=0.2)
    assert not is_alive(int(log.read_text()))


def test_programs_do_not_see_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        assert processes.run(["sh", "-c", "ps -o sid= -p $$"], output) == 0
    assert int(log.read_text()) != os.getsid(0)


def test_workers_are_killed_at_an_exception_whatever_they_are_at(
    is_alive: Callable[[int], bool],
) -> None:
    started: set[int] = set()
    with pytest.raises(KeyError), processes.workers(1) as pool:
        pool.submit(time.sleep, 60)
        started |= set(pool._processes)
        raise KeyError
    assert started and not any(map(is_alive, started))


def test_worker_that_was_killed_is_one_line() -> None:
    with pytest.raises(InputError) as caught, processes.workers(1) as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()
    assert str(caught.value) == (
        "a worker process was killed, for want of memory as a rule: give fewer --workers, or free "
        "some memory"
    )


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ("a.cpp:3: error: no x\nmake: Error 1\n", "a.cpp:3: error: no x", "mend it"),
        (
            "note\ncc1plus: out of memory allocating 65536 bytes\nmake: *** [a.o] Error 1\n",
            "cc1plus: out of memory allocating 65536 bytes",
            "free some memory or disk space, and try again",
        ),
        (
            "/tmp/x.s: Fatal error: can't write: No space left on device\n",
            "/tmp/x.s: Fatal error: can't write: No space left on device",
            "free some memory or disk space, and try again",
        ),
        ("so it ends\n\n", "so it ends", "mend it"),
        ("", "no output", "mend it"),
    ],
)
def test_cause_is_found_in_a_log(text: str, line: str, remedy: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert processes.complaint(log) == line
    assert processes.remedy(line, "mend it") == remedy


@pytest.mark.usefixtures("compiler")
def test_compiler_that_fails_is_told_and_done_without(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'cc1plus: out of memory allocating 65536 bytes'\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    rule = Rule(small_config(hidden=5, trace_bits=6, inputs=()))
    native._compiled.cache_clear()
    shown = rule.initial_state(1, 4, 4), torch.ones(1, 2, 1, 4, 4), torch.ones(1, 2, 1, 4, 4)
    with pytest.warns(RuntimeWarning) as caught:
        found = unroll(rule, *shown)[0]
    native._compiled.cache_clear()
    assert [str(warning.message) for warning in caught] == [
        "g++ made no compiled steps (cc1plus: out of memory allocating 65536 bytes): the same is "
        "computed without, many times slower"
    ]
    assert torch.equal(found, unroll_plainly(rule, *shown)[0])
