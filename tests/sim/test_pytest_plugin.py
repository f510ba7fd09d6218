from collections.abc import Callable
from pathlib import Path

import pytest

from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import verify as verification
from scotopia.sim.faults import flip_digit
from scotopia.sim.pytest_plugin import verify_rule
from scotopia.sim.verify import Extent, Stage

pytest_plugins = ["pytester"]

TEST = """
from pathlib import Path

def test_verilog_is_the_rule(scotopia_verify):
    rule, verilog = Path("rule.safetensors"), Path("verilog")
    scotopia_verify(rule, 3, 3, verilog=verilog, density=0.5, ports=False)
"""


def stage(mismatches: int) -> Stage:
    detail = "first at step 3" if mismatches else ""
    return Stage("golden model = Verilog", "", 9, mismatches, 0.1, detail=detail)


def test_fixture_is_there_in_other_projects_and_fails_what_differs(
    pytester: pytest.Pytester,
    small_config: Callable[..., object],
    random_rule: Callable[..., IntegerRule],
) -> None:
    rule = random_rule(5, small_config(channels=2, hidden=2, inputs=("valid",)))
    rule.save(Path("rule.safetensors"))
    emit(flip_digit(Program.compile(rule)), 3, 3, Path("verilog"))
    pytester.makepyfile(TEST)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*golden model = Verilog \(Verilator\): first at step \d.*"])


def test_stages_that_agree_are_returned(
    monkeypatch: pytest.MonkeyPatch,
    small_config: Callable[..., object],
    random_rule: Callable[..., IntegerRule],
) -> None:
    given = {}

    def verify(*args: object, **options: object) -> list[Stage]:
        given.update(options, args=args)
        return [stage(0)]

    monkeypatch.setattr(verification, "verify", verify)
    rule = random_rule(5, small_config())
    assert verify_rule(rule, 3, 5, density=0.4) == [stage(0)]
    assert given["density"] == 0.4
    ours, frames, extent = given["args"]
    assert ours is rule and frames.shape == (2, 3, 5) and extent == Extent(3, 5, 2)


def test_stage_that_differs_fails_the_test(
    monkeypatch: pytest.MonkeyPatch,
    small_config: Callable[..., object],
    random_rule: Callable[..., IntegerRule],
) -> None:
    monkeypatch.setattr(verification, "verify", lambda *_, **__: [stage(0), stage(2)])
    with pytest.raises(pytest.fail.Exception, match=r"^golden model = Verilog: first at step 3$"):
        verify_rule(random_rule(5, small_config()))
