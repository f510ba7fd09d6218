import pytest

from scotopia.graph.errors import InputError
from scotopia.sim import formal
from scotopia.sim.check import Verdict
from scotopia.sim.exploration import Machine
from scotopia.sim.proof import Bug, Refuted, must_fail

needs_tools = pytest.mark.skipif(bool(formal.missing()), reason=formal.missing())

PRIORITY = "no command is taken while a sample is offered"


def test_names_of_properties_are_unique() -> None:
    names = [claim.name for claim in formal.properties()]
    assert len(set(names)) == len(names)


def test_refuses_an_unknown_property() -> None:
    with pytest.raises(InputError, match="property 'peace' is unknown: choose from "):
        formal.prove(only=["peace"])


def test_a_missing_tool_skips_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formal, "missing", lambda gates=True: "Yosys is not installed")
    (check,) = formal.prove(only=[PRIORITY])
    assert (check.verdict, check.detail) == (Verdict.SKIPPED, "Yosys is not installed")


def test_a_bug_that_shows_nothing_refutes_the_proof() -> None:
    with pytest.raises(Refuted, match=r"^the planted bug was not found: none$"):
        must_fail(lambda: None, "none", "")


@needs_tools
def test_a_property_holds() -> None:
    (check,) = formal.prove(only=[PRIORITY])
    assert check.verdict is Verdict.PASSED, check.detail


@needs_tools
def test_a_property_fails_on_a_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = Bug("", "sequencer", r"(commands__ready = )\\\$\d+ ;", r"\g<1>1'h1;", "")
    shape = formal._SHAPE
    broken = Machine(shape.programs[0], shape.height, shape.width, bug)
    monkeypatch.setattr(formal, "_machine", lambda bug=None: broken)
    (check,) = formal.prove(only=[PRIORITY])
    assert check.verdict is Verdict.FAILED
    assert check.detail == "a command is taken while a sample is offered"


@pytest.mark.slow
@needs_tools
def test_all_properties_hold() -> None:
    checks = formal.prove()
    assert {c.name: c.detail for c in checks if c.verdict is not Verdict.PASSED} == {}
