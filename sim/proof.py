"""What a proof is made of: a claim, the solver's answer, and bugs that it must not survive."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scotopia.graph.errors import InputError


class Refuted(Exception):
    """A claim does not hold."""


class Undecided(Exception):
    """The solver found no answer in its time."""


@dataclass(frozen=True)
class Proof:
    """What was shown.

    Attributes
    ----------
    cases, unit
        How many of what, each for all values of its symbols.
    bugs
        The planted ones, all of which were found.
    """

    cases: int
    unit: str
    bugs: tuple[str, ...]


@dataclass(frozen=True)
class Bug:
    """An edit of the emitted Verilog.

    Attributes
    ----------
    name
        What is wrong, in a few words.
    module, pattern, text
        Where, a regular expression that must match there, and what it becomes.
    symptom
        A regular expression of what the proof must say of it: found for another reason, the bug
        would show nothing.
    """

    name: str
    module: str
    pattern: str
    text: str
    symptom: str

    def plant(self, modules: Mapping[str, str]) -> dict[str, str]:
        """Return modules with the bug.

        Raises
        ------
        InputError
            If nothing matches.
        """
        changed, count = re.subn(self.pattern, self.text, modules[self.module], flags=re.DOTALL)
        if count == 0:
            raise InputError(f"bug {self.name!r} finds no place in {self.module}: mend its pattern")
        return {**modules, self.module: changed}


def new_solver(timeout: float) -> Any:
    """Make z3's solver of bit vectors, which gives up after `timeout` seconds."""
    import z3

    solver = z3.SolverFor("QF_BV")
    solver.set("timeout", int(1000 * timeout))
    solver.set("ctrl_c", False)  # or it would take Ctrl-C for a wish to give up
    return solver


def satisfiable(claims: Sequence[Any], timeout: float, what: str) -> Any:
    """Return z3's model of all claims, or None if there is none.

    Raises
    ------
    Undecided
        If the solver has no answer after `timeout` seconds.
    """
    import z3

    solver = new_solver(timeout)
    solver.add(*claims)
    answer = solver.check()
    if answer == z3.unknown:
        raise Undecided(f"{what}: the solver gave up after {timeout:g} s")
    return solver.model() if answer == z3.sat else None


def must_fail(proof: Callable[[], object], bug: str, symptom: str) -> str:
    """Return the name of a bug that a proof refutes, and by its symptom.

    Raises
    ------
    Refuted
        If it does not.
    """
    try:
        proof()
    except Refuted as found:
        if re.search(symptom, str(found)):
            return bug
        raise Refuted(f"bug {bug!r} was taken for another: {found}") from found
    raise Refuted(f"the planted bug was not found: {bug}")
