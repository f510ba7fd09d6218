"""`scotopia prove`: all of the proof that is not about one rule and one clip."""

from collections.abc import Callable, Sequence
from pathlib import Path

from scotopia.graph.errors import InputError
from scotopia.model.memory import check_worker_count
from scotopia.sim import automata, formal, mutation, random_rules, stress
from scotopia.sim.check import Check

from .proof import Proof, write_proof
from .verify import command

#: Parts of the proof, in their order.
PARTS = ("rules", "automata", "stress", "formal", "faults")


def prove(
    parts: Sequence[str],
    *,
    rules: int,
    faults: int,
    seed: int,
    workers: int | None,
    report: Path | None,
    on_check: Callable[[str], None],
) -> Proof:
    """Do some parts of the proof, and write the report if there is to be one.

    Parameters
    ----------
    parts
        Out of `PARTS`; all of them if there is none.
    rules
        How many random rules.
    faults
        How many planted faults in an area, at most.
    seed
        Of the rules, the stress and the choice of faults.
    workers
        Processes of the parts that can use more than one; as many as cores by default.

    Raises
    ------
    InputError
        If a part is unknown, or a tool is missing that is not optional.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"part {unknown[0]!r} is unknown: choose out of {', '.join(PARTS)}")
    check_worker_count(workers)
    parts = [part for part in PARTS if part in parts or not parts]
    checks: list[Check] = []
    outcomes: list[mutation.Outcome] = []
    for part in parts:
        match part:
            case "rules":
                checks += random_rules.prove(
                    rules, first=seed << 10, workers=workers, on_check=on_check
                )
            case "automata":
                checks += automata.prove(on_check=on_check)
            case "stress":
                checks += stress.prove(seed=seed, on_check=on_check)
            case "formal":
                checks += formal.prove(on_check=on_check)
            case "faults":
                found, outcomes = mutation.prove(
                    faults, seed=seed, workers=workers, on_check=on_check
                )
                checks += found
    title = f"The array, whatever the rule: {', '.join(parts)}"
    proof = Proof(title, command(), [], checks, outcomes)
    if report is not None:
        write_proof(proof, report)
    return proof
