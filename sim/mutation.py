"""How many planted faults the verification finds: its mutation score.

Each fault meets, until one sees it, a short comparison of states, as `scotopia verify` makes it;
then, if it is one of the Verilog, the stress of the interfaces; or, if it is one of the program, a
long comparison of states, and single steps of the twin from states that are drawn. What none of
them sees a solver has to show to change nothing: then it is no fault; or to change the step from a
state that it finds. Everything else is missed.

Faults of the program are planted in a `specimen`, which uses every instruction that there is, and
those of the Verilog in a device of `stress`, whose steps are so short that much happens in few
clocks.
"""

import functools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule

from . import equivalence, formal
from .anywhere import compare_steps, moments
from .check import Check, Verdict
from .compare import compare
from .faults import Area, Fault, draw, instrument, program_faults, rule_faults, verilog_faults
from .port_faults import PORT_FAULTS
from .simulators import Bench, BenchError, Build
from .specimen import specimen
from .stimulus import Stimulus
from .stress import Device, StressBench, check_trace
from .unchanged import REGISTER, Comparison

PART = "planted faults"


class Fate(Enum):
    """What became of a fault."""

    CAUGHT = "caught"
    EQUIVALENT = "equivalent"  #: shown to change nothing
    MISSED = "missed"


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes
    ----------
    fault
        Which.
    fate
        See `Fate`.
    by
        The check that found it or showed it to be none; empty if none did.
    detail
        What that found.
    """

    fault: Fault
    fate: Fate
    by: str
    detail: str


def states_of(build: Build, number: int, program: Program | None, stimulus: Stimulus) -> str:
    """Run fault `number` of a build's Verilog, 0 for none; say where states differ, if they do."""
    try:
        found, _ = build.run(stimulus, program, plusargs=[f"+fault={number}"])
    except BenchError as error:
        if "converge" not in str(error):  # a loop without a register in it
            raise
        return str(error)
    except InputError as error:
        return str(error).partition(": ")[2]
    result = compare(stimulus.expected, found, build.rule.channel_names)
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
    with processes.workers(workers) as pool:
        futures = [
            pool.submit(states_of, build, number if fault.edits else 0, fault.program, stimulus)
            for number, fault in enumerate(faults, 1)
        ]
        for fault, future in zip(faults, futures, strict=True):
            found.append(future.result())
            on_fault(fault.name)
    return found


#: Frames of the short comparison, and the share of pixels that arrive.
FRAMES, DENSITY = 4, 0.4

#: Cells of the specimen's array: all nine neighbourhoods at a border, and more columns than rows.
HEIGHT, WIDTH = 3, 4

#: Frames and cells of the long comparison. A step takes as many clocks, so many cells see more.
LONG_FRAMES, LONG_HEIGHT, LONG_WIDTH = 100, 16, 16

_PROGRAM = (Area.RULE, Area.ROUNDING, Area.SATURATION, Area.SCHEDULE)


def prove(
    each: int = 36,
    *,
    seed: int = 0,
    areas: Sequence[Area] = tuple(Area),
    workers: int | None = None,
    on_check: Callable[[str], None] = lambda name: None,
) -> tuple[list[Check], list[Outcome]]:
    """Plant faults, at most `each` in an area, and see that each is caught, or none.

    Parameters
    ----------
    seed
        Draws them.
    workers
        Processes; as many as cores by default.
    on_check
        Called with the name of each fault that was looked at.

    Returns
    -------
    checks, outcomes
        A check for each area, which fails if a fault was missed; and all faults.
    """
    workers = workers or os.cpu_count() or 1
    start = time.perf_counter()
    outcomes = []
    for name, plant, chosen in (
        ("program", _plant_in_program, [area for area in areas if area in _PROGRAM]),
        ("Verilog", _plant_in_verilog, [area for area in areas if area not in _PROGRAM]),
    ):
        if chosen:
            on_check(f"faults of the {name}")
            outcomes += plant(each, seed, chosen, workers, on_check)
    seconds = (time.perf_counter() - start) / max(1, len(outcomes))
    return [_check(area, outcomes, seconds) for area in areas], outcomes


def _check(area: Area, outcomes: Sequence[Outcome], seconds: float) -> Check:
    here = [outcome for outcome in outcomes if outcome.fault.area is area]
    missed = [outcome.fault.name for outcome in here if outcome.fate is Fate.MISSED]
    by = Counter(outcome.by for outcome in here if outcome.by)
    return Check(
        PART,
        area.value,
        Verdict.FAILED if missed or not here else Verdict.PASSED,
        len(here),
        "faults",
        seconds * len(here),
        f"missed: {missed[0]}" if missed else ", ".join(f"{n} {name}" for name, n in by.items()),
    )


def score(outcomes: Sequence[Outcome]) -> float:
    """Value of the mutation score: the share caught of those that change anything, 0 to 1."""
    fates = Counter(outcome.fate for outcome in outcomes)
    changing = len(outcomes) - fates[Fate.EQUIVALENT]
    return fates[Fate.CAUGHT] / changing if changing else 0.0


# Faults of the program.


def _plant_in_program(
    each: int,
    seed: int,
    areas: Sequence[Area],
    workers: int,
    on_check: Callable[[str], None],
) -> list[Outcome]:
    rule = specimen()
    program = Program.compile(rule)
    known = [*rule_faults(program), *program_faults(program)]
    faults = draw([fault for fault in known if fault.area in areas], each, seed)
    with processes.temporary_folder() as name, Bench() as bench:
        emit(program, HEIGHT, WIDTH, Path(name))
        build = bench.build(rule, Path(name), HEIGHT, WIDTH)
        found = run_states(
            build,
            faults,
            _stimulus(rule, seed, FRAMES, HEIGHT, WIDTH),
            workers=workers,
            on_fault=on_check,
        )
        by = ["by states" if detail else "" for detail in found]
        on_check("what random states tell of the others")
        rest = [index for index, detail in enumerate(found) if not detail]
        anywhere = {index: _from_anywhere(program, faults[index]) for index in rest}
        different = [index for index in rest if anywhere[index]]
        large = Path(name) / "large"
        large.mkdir()
        emit(program, LONG_HEIGHT, LONG_WIDTH, large)
        build = bench.build(rule, large, LONG_HEIGHT, LONG_WIDTH)
        answers = run_states(
            build,
            [faults[index] for index in different],
            _stimulus(rule, seed, LONG_FRAMES, LONG_HEIGHT, LONG_WIDTH),
            workers=workers,
            on_fault=on_check,
        )
        for index, detail in zip(different, answers, strict=True):
            by[index] = "by states of many cells" if detail else "by a step from any state"
            found[index] = detail or anywhere[index]
    outcomes = []
    for index, fault in enumerate(faults):
        if found[index]:
            outcomes.append(Outcome(fault, Fate.CAUGHT, by[index], found[index]))
        else:
            on_check(fault.name)
            outcomes.append(_asked(program, fault))
    return outcomes


def _stimulus(rule: IntegerRule, seed: int, frames: int, height: int, width: int) -> Stimulus:
    rng = np.random.default_rng(seed)
    shape = frames, height, width
    return Stimulus.of(rule, rng.random(shape), rng.random(shape) < DENSITY)


def _from_anywhere(program: Program, fault: Fault) -> str:
    """Say which code is another after a step of the program's twin, if one is."""
    assert fault.program is not None
    rule = program.rule
    first = compare_steps(rule, fault.program, moments(rule)).first
    return f"of state {first}" if first else ""


def _asked(program: Program, fault: Fault) -> Outcome:
    """Ask the solver whether a fault changes anything."""
    assert fault.program is not None
    if why := equivalence.missing():
        return Outcome(fault, Fate.MISSED, "", why)
    match equivalence.equivalent(program, fault.program):
        case True:
            return Outcome(fault, Fate.EQUIVALENT, "equivalent", "for all states, by the solver")
        case False:
            by = "by a step from a state that the solver found"
            return Outcome(fault, Fate.CAUGHT, by, "the twin's step is not the golden model's")
        case None:
            return Outcome(fault, Fate.MISSED, "", "the solver gave up")


# Faults of the Verilog.

#: Cells of every place in an array, which fire at random. All gates have something to do, and steps
#: are short enough for symbolic simulation.
_DEVICE = Device(
    *(3, 3, "residual", "replicate", (222, 201)),
    channels=2,
    steps_per_frame=2,
    fire_rate=0.5,
    effort=6,
)


def _plant_in_verilog(
    each: int,
    seed: int,
    areas: Sequence[Area],
    workers: int,
    on_check: Callable[[str], None],
) -> list[Outcome]:
    program, height, width = _DEVICE.programs[0], _DEVICE.height, _DEVICE.width
    with processes.temporary_folder() as name:
        folder = Path(name)
        emit(program, height, width, folder)
        faults = draw([f for f in verilog_faults(folder) if f.area in areas], each, seed)
        # Those at the ports are few, each of a kind of its own, and planted whatever `each`.
        faults += [fault.fault(folder) for fault in PORT_FAULTS if fault.area in areas]
        instrument(folder, faults)
        stimulus = _stimulus(program.rule, seed, FRAMES, height, width)
        with Bench() as bench:
            build = bench.build(program.rule, folder, height, width)
            found = run_states(build, faults, stimulus, workers=workers, on_fault=on_check)
        by = ["by states" if detail else "" for detail in found]
        with StressBench() as bench:
            bench.build_device(_DEVICE, folder)
            ask = functools.partial(_stressed, bench, _DEVICE)
            if why := ask(0)[1]:
                raise InputError(
                    f"the device fails before any fault is planted ({why}): mend it first"
                )
            rest = [index for index, detail in enumerate(found) if not detail]
            with processes.workers(workers) as pool:
                answers = pool.map(ask, [index + 1 for index in rest])
                for index, answer in zip(rest, answers, strict=True):
                    by[index], found[index] = answer
                    on_check(faults[index].name)
    outcomes = [Outcome(f, Fate.CAUGHT, *how) for f, *how in zip(faults, by, found, strict=True)]
    rest = [index for index, detail in enumerate(found) if not detail]
    asked = _simulated([faults[index] for index in rest], workers, on_check)
    for index, outcome in zip(rest, asked, strict=True):
        outcomes[index] = outcome
    return outcomes


def _simulated(
    faults: Sequence[Fault], workers: int, on_check: Callable[[str], None]
) -> list[Outcome]:
    """Ask symbolic simulation whether faults change anything."""
    if not faults:
        return []
    if why := formal.missing():
        return [Outcome(fault, Fate.MISSED, "", why) for fault in faults]
    on_check("what the right device does")
    _comparison.append(_compared(faults))
    outcomes = []
    # A process for each: the formulas of one fault, gigabytes of them, end with it.
    with multiprocessing.get_context("fork").Pool(
        workers, processes.begin_worker, maxtasksperchild=1
    ) as pool:
        numbers = range(1, len(faults) + 1)
        for fault, where in zip(faults, pool.imap(_difference, numbers), strict=True):
            on_check(fault.name)
            if where:
                outcomes.append(Outcome(fault, Fate.MISSED, "", f"could show: {where}"))
            else:
                detail = "on all journeys, by symbolic simulation"
                outcomes.append(Outcome(fault, Fate.EQUIVALENT, "equivalent", detail))
    _comparison.clear()
    return outcomes


#: What processes that are forked find here, for it is too large to be sent to them.
_comparison: list[Comparison] = []


def _difference(number: int) -> str:
    return _comparison[0].difference(number)


def _compared(faults: Sequence[Fault]) -> Comparison:
    """Return the device with faults that are told apart by a register."""
    program, height, width = _DEVICE.programs[0], _DEVICE.height, _DEVICE.width
    with processes.temporary_folder() as name:
        folder = Path(name)
        emit(program, height, width, folder)
        instrument(folder, faults, REGISTER)
        modules = {path.stem: path.read_text() for path in folder.glob("*.v")}
    return Comparison(program, height, width, modules)


def _stressed(bench: StressBench, device: Device, number: int) -> tuple[str, str]:
    """Drive what was built with one fault awake; the first scenario that fails, and how."""
    # The first finds most, and the others take long.
    for scenarios in (device.scenarios[:1], device.scenarios[1:]):
        trace = bench.run_device(device, 0, scenarios, [f"+fault={number}"])
        for finding in check_trace(device, trace):
            if finding.detail:
                return "by stress", f"{finding.scenario}: {finding.detail}"
    return "", ""
