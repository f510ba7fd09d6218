"""How many planted faults the verification finds."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from scotopia.hdl.program import Program
from scotopia.model.errors import InputError

from .compare import compare
from .faults import Fault
from .simulators import Build
from .stimulus import Stimulus


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes
    ----------
    fault
        Which.
    caught_by
        The check that found it; empty if none did.
    detail
        What that found.
    """

    fault: Fault
    caught_by: str
    detail: str


def states_of(build: Build, number: int, program: Program | None, stimulus: Stimulus) -> str:
    """Run fault `number` of a build's Verilog, 0 for none; say where states differ, if they do."""
    try:
        found, _ = build.run(stimulus, program, plusargs=[f"+fault={number}"])
    except InputError as error:
        return str(error).partition(": ")[2]
    except RuntimeError as error:
        if "converge" not in str(error):  # a loop without a register in it
            raise
        return str(error)
    result = compare(stimulus.expected, found, build.rule.config.channel_names)
    return f"{result.mismatches:,} codes differ, first at {result.first}" if result.first else ""


def run_states(
    build: Build,
    faults: Sequence[Fault],
    stimulus: Stimulus,
    *,
    workers: int = 1,
    on_fault: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Run every fault; where states differ, or nothing. `build` is of instrumented Verilog.

    Raises
    ------
    InputError
        If they differ without a fault.
    """
    if wrong := states_of(build, 0, None, stimulus):
        raise InputError(
            f"the Verilog differs before any fault is planted ({wrong}): mend it first"
        )
    found = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        futures = [
            pool.submit(states_of, build, number if fault.edit else 0, fault.program, stimulus)
            for number, fault in enumerate(faults, 1)
        ]
        for fault, future in zip(faults, futures, strict=True):
            found.append(future.result())
            on_fault(fault.name)
    return found
