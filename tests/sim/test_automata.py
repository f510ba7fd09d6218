import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scotopia.graph import golden
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import check
from scotopia.graph.operations import Border
from scotopia.graph.qformat import IntArray
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.sim.automata import (
    LIFE,
    MOORE,
    RULE_30,
    TRIALS,
    Automaton,
    Trial,
    World,
    counting,
    drawn,
    judge,
    life_like,
    prove,
    soup,
)
from scotopia.sim.check import Verdict
from scotopia.sim.simulators import Bench
from scotopia.sim.verify import run_program

BY_TITLE = {trial.title: trial for trial in TRIALS}
AUTOMATA = tuple({trial.automaton.name: trial.automaton for trial in TRIALS}.values())
LARGE = BY_TITLE["Life: R-pentomino"]

GLIDER = BY_TITLE["Life: glider"]
SOUP = BY_TITLE["Life: soup within mirrors"]

each_automaton = pytest.mark.parametrize("automaton", AUTOMATA, ids=lambda a: a.name)
each_trial = pytest.mark.parametrize(
    "trial",
    [pytest.param(t, marks=[pytest.mark.slow] if t is LARGE else []) for t in TRIALS],
    ids=lambda t: t.title,
)


def run(trial: Trial) -> dict[str, IntArray]:
    """The stages that need no simulator."""
    rule = trial.rule()
    stimulus = trial.stimulus(rule)
    program = run_program(Program.compile(rule), stimulus)
    return {"golden model": stimulus.expected, "program": program}


def with_network_of(wrong: Automaton) -> Automaton:
    """Life by its definition, with the weights of another automaton."""
    return replace(LIFE, network=wrong.network)


@each_trial
def test_golden_model_and_program_are_the_definition_and_do_what_is_known(trial: Trial) -> None:
    wrong, detail = judge(trial, run(trial))
    assert not wrong, detail
    assert re.match(r"population \d+ at generation \d+; ", detail)


@each_automaton
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_every_border_is_the_definition(automaton: Automaton, border: Border) -> None:
    shape = (7, 9)
    start = soup(0, (0.4, *[0.6 / (automaton.states - 1)] * (automaton.states - 1)), shape)
    trial = Trial(automaton, "any", start, shape, border, 20, "", lambda *_: True)
    wrong, detail = judge(trial, {"golden model": run(trial)["golden model"]})
    assert not wrong, detail


@each_automaton
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_every_rule_has_a_proof_that_holds(automaton: Automaton, border: Border) -> None:
    rule = automaton.rule(border)
    assert rule.proof is not None
    check(rule.graph, rule.proof)


def test_frames_of_several_steps_are_the_definition() -> None:
    stages = run(replace(GLIDER, steps_per_frame=7))
    wrong, detail = judge(replace(GLIDER, steps_per_frame=7), stages)
    assert not wrong, detail


def test_states_may_be_compared_now_and_then() -> None:
    trial = replace(GLIDER, every=11)
    assert trial.compared == [11, 22, 33, 44, 55]
    wrong, detail = judge(replace(trial, holds=lambda history, _: 55 in history), run(trial))
    assert not wrong, detail


def test_titles_are_unique_and_every_border_occurs() -> None:
    assert len(BY_TITLE) == len(TRIALS)
    assert {trial.border for trial in TRIALS} == {"zero", "replicate", "wrap"}


# What must be caught.


@pytest.mark.parametrize(
    ("born", "survives"),
    [({2}, {2, 3}), ({3, 6}, {2, 3}), ({3}, {2}), ({3}, {3}), ({3}, {2, 3, 4})],
)
def test_wrong_birth_or_survival_is_caught(born: set[int], survives: set[int]) -> None:
    wrong_life = with_network_of(life_like("wrong", "", born, survives))
    wrong, detail = judge(SOUP, run(replace(SOUP, automaton=wrong_life)))
    assert wrong
    assert re.fullmatch(
        r"golden model, generation \d+, cell \(x \d+, y \d+\), channel state 1: "
        r"expected (1, got 0|0, got 1)",
        detail,
    )


def test_birth_on_two_is_named_by_generation_and_cell() -> None:
    wrong_life = with_network_of(life_like("wrong", "", {2}, {2, 3}))
    trial = replace(GLIDER, start=drawn("OOO", 5, 5), holds=lambda *_: True)
    wrong, detail = judge(trial, run(replace(trial, automaton=wrong_life)))
    # The blinker's corners have two neighbours each.
    assert (wrong, detail) == (
        True,
        "golden model, generation 1, cell (x 5, y 4), channel state 1: expected 0, got 1",
    )


@pytest.mark.parametrize("flip", [np.fliplr, np.flipud, np.transpose])
def test_rule_30_tells_directions_apart(flip: object) -> None:
    trial = BY_TITLE["Rule 30: lone 1"]
    weight = np.array([[4, 2, 1], [0, 8, 0], [0, 0, 0]])
    accepted = {1, 2, 3, 4, *range(8, 16)}
    assert callable(flip)
    mirrored = replace(RULE_30, network=counting(flip(weight), accepted))
    assert judge(trial, run(replace(trial, automaton=mirrored)))[0]


def test_golden_model_that_takes_north_for_south_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = BY_TITLE["Rule 30: lone 1"]
    around, turned = golden.around, [6, 7, 8, 3, 4, 5, 0, 1, 2]
    monkeypatch.setattr(
        golden, "around", lambda codes, border: around(codes, border)[..., turned, :, :]
    )
    assert judge(trial, run(trial)) == (
        True,
        "golden model, generation 1, cell (x 25, y 1), channel state 1: expected 1, got 0",
    )


@pytest.mark.parametrize("border", ["zero", "replicate"])
def test_wrong_border_is_caught(border: Border) -> None:
    trial = BY_TITLE["Life: soup on a torus"]
    assert judge(trial, run(replace(trial, border=border)))[0]


def test_fault_of_a_later_stage_alone_is_named() -> None:
    stages = run(GLIDER)
    states = stages["program"].copy()
    states[28, 0, 7, 8] ^= 1
    wrong, detail = judge(GLIDER, stages | {"program": states})
    assert wrong
    assert detail.startswith("program, generation 29, cell (x 8, y 7), channel state 1: ")


def test_missing_answer_is_a_mismatch() -> None:
    stages = run(GLIDER)
    wrong, detail = judge(GLIDER, stages | {"program": stages["program"][:-1]})
    assert wrong
    assert (
        detail == "program, generation 64, cell (x 0, y 0), channel state 1: expected 0, no answer"
    )


def test_dead_world_proves_nothing() -> None:
    trial = replace(GLIDER, start=drawn("OO", 5, 5), holds=lambda *_: True)
    assert judge(trial, run(trial)) == (True, "nothing was born in 65 generations")


def test_still_world_proves_nothing() -> None:
    trial = replace(GLIDER, start=drawn("OO OO", 5, 5), holds=lambda *_: True)
    assert judge(trial, run(trial)) == (True, "nothing was born in 65 generations")


@pytest.mark.parametrize(
    ("title", "other"),
    [
        ("Life: glider", drawn("OOO", 5, 5)),
        ("Life: blinker and pulsar", drawn("OOO", 24, 24)),
        ("Life: Gosper's gun", BY_TITLE["Life: Gosper's gun"].start | {(34, 0): 1}),
        ("Life: R-pentomino", drawn("OOO OOO")),
        ("HighLife: replicator", drawn("..OOO .O..O O...O O..O. OOOO.", 16, 16)),
        ("Day & Night: soup and its complement", soup(9, (0.5, 0.5), (24, 32))),
        ("Fredkin's replicator: an E", drawn("OOO", 18, 0)),
        ("Rule 30: lone 1", {(0, 26): 1, (0, 24): 1}),
        ("Brian's Brain: block", drawn("11", 15, 15)),
        ("Brian's Brain: oscillator", drawn("11 11", 9, 9)),
        ("Greenberg-Hastings: one excited cell", {(11, 12): 1, (12, 12): 2}),
        ("Greenberg-Hastings: soup within mirrors", {(12, 12): 1}),
        ("Wireworld: two diodes", drawn("2133333.333333", 1) | drawn("21333333333333", 5)),
        ("Wireworld: clock", drawn(".2133. 3....333333333 3....3 .3333.")),
    ],
)
def test_what_is_known_of_a_pattern_is_not_so_of_another(title: str, other: World) -> None:
    trial = BY_TITLE[title]
    history = replace(trial, start=other, plane=False).history()
    assert not trial.holds(history, trial.shape)


def test_pattern_too_large_for_its_torus_is_refused() -> None:
    trial = replace(BY_TITLE["Life: Gosper's gun"], shape=(20, 36))
    with pytest.raises(ValueError, match=r"^Life: Gosper's gun does not fit \(20, 36\)$"):
        trial.history()


def test_birth_of_nothing_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        counting(MOORE, {0, 2})
    assert str(caught.value) == ("count 0 makes live cells of nothing: choose counts of 1 or more")


def test_unknown_check_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        prove(only={"Life: acorn"}, trials=(GLIDER, SOUP))
    assert str(caught.value) == (
        "check 'Life: acorn' of automata is unknown: "
        "choose out of Life: glider, Life: soup within mirrors"
    )


# The emitted Verilog.


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench("verilator") as bench:
        yield bench


def test_glider_goes_round_the_torus_in_verilog() -> None:
    named: list[str] = []
    trial = replace(GLIDER, shape=(8, 8), generations=32)
    (made,) = prove(trials=(trial, SOUP), only={GLIDER.title}, on_check=named.append)
    assert named == [GLIDER.title]
    assert (made.part, made.name, made.verdict) == ("automata", GLIDER.title, Verdict.PASSED)
    assert (made.cases, made.unit) == (32 * 8 * 8, "cells compared")
    assert made.detail == (
        "population 5 at generation 32; moves (1, 1) in 4 generations (LifeWiki, Glider)"
    )


@pytest.mark.slow
def test_verilog_of_a_wrong_rule_fails_the_proof() -> None:
    wrong_life = with_network_of(life_like("wrong", "", {2}, {2, 3}))
    trial = replace(GLIDER, automaton=wrong_life, shape=(8, 8), generations=32)
    (made,) = prove(trials=(trial,))
    assert made.verdict is Verdict.FAILED
    assert made.detail.startswith("golden model, generation 1, cell ")


@pytest.mark.slow
def test_rows_exchanged_in_verilog_are_caught_by_rule_30(bench: Bench, tmp_path: Path) -> None:
    trial = replace(BY_TITLE["Rule 30: lone 1"], shape=(5, 9), start={(0, 4): 1}, generations=6)
    rule = trial.rule()
    emit(Program.compile(rule), 5, 9, tmp_path)
    path = tmp_path / "pixel_array.v"
    text, count = re.subn(
        r"(pixel_row row_1 [^;]*?\.north\()(\w+)([^;]*?\.south\()(\w+)",
        r"\1\4\3\2",
        path.read_text(),
    )
    assert count == 1
    path.write_text(text)
    states, _ = bench.run(rule, tmp_path, trial.stimulus(rule))
    wrong, detail = judge(trial, run(trial) | {"Verilog": states})
    assert wrong
    assert detail.startswith("Verilog, generation ")


@pytest.mark.slow
def test_every_trial_holds_in_verilog() -> None:
    for made in prove():
        assert made.verdict is Verdict.PASSED, f"{made.name}: {made.detail}"
