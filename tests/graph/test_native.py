"""What is compiled is kept for the next process."""

from pathlib import Path

import pytest

from scotopia.graph import native, processes

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no C compiler")

COMMAND = ("cc", "-shared", "-fPIC", "-x", "c", "-")
SEVEN = "int number(void) { return 7; }"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a compiler runs; the cache is empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found: list[str] = []
    run = processes.run

    def counted(command: list[str], *arguments: object, **options: object) -> int:
        found.append(command[0])
        return run(command, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "run", counted)
    return found


def number(source: str = SEVEN, command: tuple[str, ...] = COMMAND) -> int:
    library = native.load(command, source)
    assert library is not None
    return int(library.number())


def test_same_text_is_compiled_once(runs: list[str], tmp_path: Path) -> None:
    assert [number(), number()] == [7, 7] and len(runs) == 1
    assert number(SEVEN.replace("7", "8")) == 8 and len(runs) == 2
    assert number(command=("cc", "-O1", *COMMAND[1:])) == 7 and len(runs) == 3
    assert len(list((tmp_path / "scotopia").iterdir())) == 3


def test_what_was_cut_short_is_compiled_again(runs: list[str], tmp_path: Path) -> None:
    number()
    (kept,) = (tmp_path / "scotopia").iterdir()
    # A copy, for this process has the file mapped.
    data = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(data[:100])
    assert number() == 7 and len(runs) == 2


def test_folder_that_others_can_write_is_not_trusted(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "scotopia").mkdir()
    (tmp_path / "scotopia").chmod(0o777)
    assert [number(), number()] == [7, 7] and len(runs) == 2
    assert not list((tmp_path / "scotopia").iterdir())


def test_only_so_many_are_kept(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "MOST_KEPT", 2)
    for other in (1, 2, 3):
        number(SEVEN.replace("7", str(other)))
    assert len(list((tmp_path / "scotopia").iterdir())) == 2
    assert number(SEVEN.replace("7", "3")) == 3 and len(runs) == 3  # the latest are


def test_failure_is_not_kept(runs: list[str]) -> None:
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="made no compiled steps"):
            assert native.load(COMMAND, "int number(") is None
    assert len(runs) == 2


def test_full_disk_leaves_nothing_half_written(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", half)
    assert [number(), number()] == [7, 7] and len(runs) == 2
    assert not list((tmp_path / "scotopia").iterdir())
