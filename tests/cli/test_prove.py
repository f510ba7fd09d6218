import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scotopia.cli import prove as proving
from scotopia.sim.check import Check, Verdict
from scotopia.sim.faults import Area, Fault
from scotopia.sim.mutation import Fate, Outcome

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Check]]:
    """What each part is to answer, and no part runs."""
    answers = {
        name: [Check(name, f"claim of {name}", Verdict.PASSED, 7, "cases", 0.5)]
        for name in proving.PARTS
    }
    outcomes = [
        Outcome(Fault(Area.CELL, "a <fault>"), Fate.CAUGHT, "by states", "codes differ"),
        Outcome(Fault(Area.BORDER, "no fault"), Fate.EQUIVALENT, "equivalent", ""),
    ]
    for name, module in (
        ("rules", proving.random_rules),
        ("automata", proving.automata),
        ("stress", proving.stress),
        ("formal", proving.formal),
    ):
        monkeypatch.setattr(module, "prove", lambda *_, name=name, **__: answers[name])
    monkeypatch.setattr(proving.mutation, "prove", lambda *_, **__: (answers["faults"], outcomes))
    return answers


def test_all_parts_are_proven_in_their_order(
    run: Run, parts: dict[str, list[Check]], tmp_path: Path
) -> None:
    status, out, _ = run("prove", "--report", tmp_path / "proof")
    assert status == 0
    found = json.loads((tmp_path / "proof" / "proof.json").read_text())
    assert [check["part"] for check in found["checks"]] == list(proving.PARTS)
    assert found["passed"] is True
    assert [fault["fate"] for fault in found["faults"]] == ["caught", "equivalent"]
    page = (tmp_path / "proof" / "proof.html").read_text()
    assert "100 %" in page and "a &lt;fault&gt;" in page
    suites = ElementTree.parse(tmp_path / "proof" / "junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == list(proving.PARTS)
    assert "claim of stress" in " ".join(out.split())


def test_one_part_alone(run: Run, parts: dict[str, list[Check]], tmp_path: Path) -> None:
    assert run("prove", "stress", "--report", tmp_path)[0] == 0
    found = json.loads((tmp_path / "proof.json").read_text())
    assert [check["part"] for check in found["checks"]] == ["stress"]


def test_what_fails_or_is_skipped_is_seen_and_does_not_pass(
    run: Run, parts: dict[str, list[Check]], tmp_path: Path
) -> None:
    parts["formal"][0] = Check("formal", "x", Verdict.SKIPPED, 0, "cases", 0, "z3 is missing")
    status, out, _ = run("prove", "--report", tmp_path)
    assert status == 1 and "skipped" in out
    parts["stress"][0] = Check("stress", "x", Verdict.FAILED, 3, "clocks", 0, "clock 5, busy")
    status, out, _ = run("prove", "--report", tmp_path)
    assert status == 1 and "failed" in out
    junit = (tmp_path / "junit.xml").read_text()
    assert 'failure message="clock 5, busy"' in junit and 'skipped message="z3 is' in junit


def test_unknown_part_is_refused(run: Run, tmp_path: Path) -> None:
    status, _, err = run("prove", "belief", "--report", tmp_path / "new")
    assert status == 2
    assert err == (
        "scotopia: part 'belief' is unknown: "
        "choose out of rules, automata, stress, formal, faults\n"
    )
