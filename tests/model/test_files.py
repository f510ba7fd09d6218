import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from scotopia.graph.errors import InputError
from scotopia.model.files import check_writable, locked, write_all, write_atomically


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def device(path: Path, minor: int) -> Path:
    """A character device of memory: 3 is null, 7 is full."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, minor))
        path.write_bytes(b"")
    except PermissionError:
        pytest.skip("this user may not make devices here")
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_the_umask(umask: None, tmp_path: Path) -> None:
    write_atomically(tmp_path / "new", "text")
    assert mode(tmp_path / "new") == 0o640


def test_a_file_keeps_its_mode(umask: None, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.touch()
    path.chmod(0o606)
    write_atomically(path, "text")
    assert (mode(path), path.read_text()) == (0o606, "text")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    if there:
        write_atomically(target, "old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert (link.readlink(), target.read_bytes()) == (target, b"new")


def test_a_device_is_written_to(tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    write_atomically(null, "gone")
    assert null.is_char_device()


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    check_writable(pipe)  # which does not open it
    write_atomically(pipe, "text")
    reader.join(10)
    assert (received, pipe.is_fifo()) == ([b"text"], True)


def test_a_full_device_is_named(tmp_path: Path) -> None:
    full = device(tmp_path / "full", 7)
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
        write_atomically(full, "text")


def test_a_file_too_large_is_named_and_all_are_as_they_were(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text("old")
    with largest_file(100), pytest.raises(OSError, match=f"File too large: '{large}'"):
        write_all({small: "new", large: bytes(101)})
    assert (list(tmp_path.iterdir()), small.read_text()) == ([small], "old")


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("folder", False, "Is a directory"),
        ("file", True, "Not a directory"),
        ("file/below", False, "Not a directory"),
        ("x" * 256, False, "File name too long"),
        ("loop", False, "Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_left(
    tmp_path: Path, name: str, folder: bool, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=f"{reason}: '{tmp_path / name}'"):
        check_writable(tmp_path / name, folder=folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_takes_no_file_is_told() -> None:
    with pytest.raises(OSError, match="none"):
        check_writable(Path("/proc/none.json"))


@pytest.mark.parametrize(("name", "folder"), [("file", False), ("a/b", False), ("a/b", True)])
def test_what_can_be_written_is_not_touched(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "file").write_text("old")
    check_writable(tmp_path / name, folder=folder)
    assert [path.read_text() for path in tmp_path.rglob("*")] == ["old"]


def test_what_is_locked_is_refused_by_either_name(tmp_path: Path) -> None:
    path, link = tmp_path / "rule", tmp_path / "link"
    link.symlink_to(path)
    with locked(path):
        with pytest.raises(InputError) as caught, locked(link):
            pass
        assert str(caught.value) == (
            f"{path} belongs to a command that is running: wait for it, or choose another path"
        )
    assert list(tmp_path.iterdir()) == [link]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "rule"
    child = os.fork()
    if not child:
        with locked(path):
            os._exit(0)
    os.waitpid(child, 0)
    assert [file.name for file in tmp_path.iterdir()] == [".rule.lock"]
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []
