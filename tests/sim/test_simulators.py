from pathlib import Path
from typing import Any

import pytest

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.sim import simulators
from scotopia.sim.simulators import Bench, plain, simulate


def test_path_with_spaces_is_used_by_a_link_without(tmp_path: Path) -> None:
    sources = [tmp_path / "a b" / name for name in ("c.v", "d e.v")]
    for source in sources:
        source.parent.mkdir(exist_ok=True)
        source.write_text(source.name)
    links = [plain(source, tmp_path / "work") for source in (*sources, *sources)]
    assert not any(" " in str(link.relative_to(tmp_path)) for link in links)
    assert [link.read_text() for link in links[:2]] == ["c.v", "d e.v"]
    assert links[2:] == links[:2]
    assert plain(tmp_path, tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("tool", "complaint", "remedy"),
    [
        ("verilator", "%Error: a.v:1: syntax error", "mend or emit it again"),
        ("make", "a.cpp:1: fatal error: no.h: No such file", "see that g++ and make work"),
        (
            "make",
            "cc1plus: out of memory allocating 8 bytes",
            "free some memory or disk space, and try again",
        ),
    ],
)
def test_what_cannot_be_compiled_is_told_by_its_cause(
    tool: str, complaint: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], output: Any, **_: object) -> int:
        failed = Path(command[0]).name == tool
        output.write(f"{complaint}\n" if failed else "")
        return int(failed)

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(simulators, "read_manifest", lambda folder: {"sources": ["a.v"]})
    with Bench() as bench, pytest.raises(InputError) as caught:
        bench.compile("harness", tmp_path, [], {}, "")
    assert str(caught.value) == f"verilator cannot compile {tmp_path} ({complaint}): {remedy}"


def test_simulation_without_a_result_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_command: list[str], output: Any, **_: object) -> int:
        output.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
        return -6

    monkeypatch.setattr(processes, "run", run)
    (tmp_path / "build").mkdir()
    with pytest.raises(InputError) as caught:
        simulate("verilator", tmp_path, tmp_path, "scotopia.sim.cocotb_bench", "harness", ())
    assert str(caught.value) == (
        "the bench failed in verilator (terminate called after throwing an instance of "
        "'std::bad_alloc'): free some memory or disk space, and try again"
    )
