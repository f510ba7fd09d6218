"""Random integer rules, and whether all that computes a rule agrees on them.

Their steps are random graphs, in random surroundings. Rules that fit the same gates share them: an
array is compiled once and given the program of each rule through its register port, as users load
one.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.operations import OPERATIONS, Border, Fit
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Event, Initial
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import shape_code
from scotopia.quantize.integer_rule import GraphRule

from .amaranth_bench import run_amaranth
from .check import Check, Verdict
from .compare import compare
from .random_graphs import BORDERS, Outline, any_format, any_graph
from .simulators import Bench, verilated
from .stimulus import Stimulus, golden_states
from .verify import run_program

PART = "random rules"

#: A rounding, an overflow, and a border of the same graph.
Mode = tuple[Rounding, Overflow, Border]

MODES: tuple[Mode, ...] = tuple(itertools.product(Rounding, Overflow, BORDERS))


def any_rule(seed: int, device: "Device | None" = None, *, most_bits: int = 10) -> GraphRule:
    """Draw rule number `seed` of an endless series, perhaps for one device."""
    if device is None:
        device = Device.draw(seed, most_bits=most_bits)
    graph = any_graph(seed, most_bits=most_bits, outline=device.outline)
    return GraphRule(
        graph, device.steps_per_frame, device.events, device.initial, device.noise_seed
    )


@dataclass(frozen=True, eq=False)
class Device:
    """An array, and what the rules that it can be given have in common.

    Attributes
    ----------
    number
        In the series of devices; draws all else.
    height, width
        Cells.
    outline
        Of the graphs.
    events, initial, steps_per_frame, noise_seed
        As of a rule.
    """

    number: int
    height: int
    width: int
    outline: Outline
    events: tuple[Event, ...]
    initial: Initial
    steps_per_frame: int
    noise_seed: int

    @classmethod
    def draw(cls, number: int, *, most_bits: int = 10) -> "Device":
        """Draw a device; each border alone, and all of them, take turns."""
        rng = np.random.default_rng([number, 1])
        # Amaranth's simulator takes a second for some thousand clocks: rules are many, not large.
        height, width = (int(side) for side in rng.integers(1, 5, 2))
        channels = {f"x{i}": any_format(rng, most_bits) for i in range(rng.integers(1, 5))}
        inputs, events = {}, []
        for index in range(rng.choice(3, p=[0.2, 0.5, 0.3])):
            flag = f"valid{index}" if rng.random() < 0.6 else None
            events.append(Event(f"sample{index}", flag))
            inputs[f"sample{index}"] = any_format(rng, most_bits)
            if flag:
                inputs[flag] = QFormat(1, 0, signed=False)
        turn = number % (len(BORDERS) + 1)
        borders = BORDERS[turn : turn + 1] or BORDERS
        return cls(
            number,
            height,
            width,
            Outline(channels, inputs, borders, bool(rng.random() < 0.5)),
            tuple(events),
            _any_initial(rng, list(channels.values())),
            int(rng.integers(1, 3)),
            int(rng.integers(1 << 32)),
        )

    def rules(self, count: int) -> Iterator[tuple[int, GraphRule, Program]]:
        """Yield `count` rules that can run on the same gates, with their seeds and programs."""
        drawn = (self._drawn(seed) for seed in itertools.count(self.number << 20))
        first = [one for one in itertools.islice(drawn, _TRIED) if one]
        codes = Counter(self._shape(program) for _, _, program in first)
        program = max((program for *_, program in first), key=lambda one: codes[self._shape(one)])
        fitting = (self._fitted(one, program) for one in itertools.chain(first, drawn))
        yield from itertools.islice(filter(None, fitting), count)

    def _drawn(self, seed: int) -> tuple[int, GraphRule, Program] | None:
        rule = any_rule(seed, self)
        states = stimulus_of(rule, seed, self.height, self.width).expected
        if (states == states[:1, :, :1, :1]).all():  # which a wrong program might compute, too
            return None
        try:
            return seed, rule, Program.compile(rule)
        except InputError:  # more planes than there are
            return None

    def _shape(self, program: Program) -> int:
        return shape_code(program, self.height, self.width)

    def _fitted(
        self, drawn: tuple[int, GraphRule, Program] | None, gates: Program
    ) -> tuple[int, GraphRule, Program] | None:
        """Return a rule with its program for some gates, if there is one."""
        if drawn is None:
            return None
        seed, rule, program = drawn
        if program.planes != gates.planes:
            try:
                program = Program.compile(rule, gates.planes)
            except InputError:
                return None
        return (seed, rule, program) if self._shape(program) == self._shape(gates) else None


def _any_initial(rng: np.random.Generator, formats: list[QFormat]) -> Initial:
    """Draw a first state: of zeros, alike in all cells, of a cell in the middle, or by chance."""
    ends = [one.values(np.array([one.lowest, one.highest])) for one in formats]
    low, high = np.array(ends, np.float64).T
    none, drawn = Initial.zeros(len(formats)), rng.uniform(low, high)
    match rng.integers(4):
        case 0:
            return none
        case 1:
            return replace(none, fill=drawn)
        case 2:
            return Initial.cell(drawn)
        case _:
            return replace(none, fill=(low + high) / 2, spread=(high - low) / 2)


#: Rules that are drawn before it is decided of what shape the gates are.
_TRIED = 16


@dataclass(frozen=True)
class Finding:
    """What became of one rule.

    Attributes
    ----------
    device, seed
        Which.
    operations
        Kinds of operations that its next state depends on.
    modes
        Of its fits, with each border that it sees.
    borders
        Which it sees.
    states
        Of cells, compared with the golden model's, in each of the three.
    saturated
        Share of the codes that lie at an end of their format.
    detail
        The first mismatch, if there was one.
    """

    device: int
    seed: int
    operations: frozenset[str]
    modes: frozenset[Mode]
    borders: tuple[Border, ...]
    states: int
    saturated: float
    detail: str


#: Frames that each rule is shown, and share of pixels that arrive.
FRAMES, DENSITY = 2, 0.3


def stimulus_of(rule: GraphRule, seed: int, height: int, width: int) -> Stimulus:
    """Return random frames, of which many codes are extreme, and what the golden model makes."""
    rng, events = np.random.default_rng(seed), len(rule.events)
    shape = FRAMES, height, width
    samples = np.zeros((events, *shape), np.int64)
    mask = rng.random((events, *shape)) < DENSITY
    for one, (_, format) in zip(samples, rule.targets, strict=False):
        codes = rng.integers(format.lowest, format.highest + 1, shape)
        ends = rng.choice([format.lowest, format.highest], shape)
        one[...] = np.where(rng.random(shape) < 0.3, ends, codes)
    samples = np.where(mask, samples, 0)
    if events == 1:
        samples, mask = samples[0], mask[0]
    else:
        samples, mask = samples.swapaxes(0, 1), mask.swapaxes(0, 1)
    # Reading takes a simulator longer than a step: once a frame.
    every = rule.steps_per_frame
    return Stimulus(samples, mask, golden_states(rule, samples, mask, every), every)


def run_device(number: int, count: int, simulator: str = "verilator") -> list[Finding]:
    """Compare `count` rules of a device: golden model, program, Amaranth and Verilog."""
    device = Device.draw(number)
    findings = []
    with Bench(simulator) as bench, processes.temporary_folder() as name:
        build = None
        for seed, rule, program in device.rules(count):
            if build is None:
                emit(program, device.height, device.width, Path(name))
                build = bench.build(rule, Path(name), device.height, device.width)
            stimulus = stimulus_of(rule, seed, device.height, device.width)
            # The build is of the first rule: only its program knows the others.
            verilog = replace(build, rule=rule)
            found = {
                "program": run_program(program, stimulus),
                "Amaranth": run_amaranth(program, stimulus)[0],
                f"Verilog ({simulator.capitalize()})": verilog.run(stimulus, program)[0],
            }
            findings.append(judge(device, seed, rule, stimulus, found))
    return findings


def judge(
    device: Device, seed: int, rule: GraphRule, stimulus: Stimulus, found: dict[str, IntArray]
) -> Finding:
    """Compare the states that each stage made of a stimulus with the golden model's."""
    details = [
        f"{name}, {first}"
        for name, states in found.items()
        if (first := compare(stimulus.expected, states, rule.channel_names).first)
    ]
    ends = [
        np.isin(codes, (format.lowest, format.highest))
        for codes, format in zip(
            stimulus.expected.swapaxes(0, 1), rule.channel_formats, strict=True
        )
    ]
    alive = rule.graph.pruned()
    fits = [one for one in alive.operations if isinstance(one, Fit)]
    return Finding(
        device.number,
        seed,
        frozenset(type(one).__name__ for one in alive.operations),
        frozenset((fit.rounding, fit.overflow, border) for fit in fits for border in alive.borders),
        alive.borders,
        stimulus.expected[:, 0].size,
        float(np.mean(ends)),
        f"rule {seed}: {details[0]}" if details else "",
    )


def prove(
    count: int = 1000,
    *,
    first: int = 0,
    each: int = 40,
    workers: int | None = None,
    simulator: str = "verilator",
    on_check: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Compare random rules on the golden model, the program's twin, Amaranth and the Verilog.

    Parameters
    ----------
    count
        How many rules.
    first
        Number of the first device.
    each
        Rules that share a device.
    workers
        Processes; as many as cores by default.
    on_check
        Called with the name of each device that is done.

    Returns
    -------
    A check for each border and for several, and one each that all operations and modes occurred.
    """
    start = time.perf_counter()
    shares = [min(each, count - done) for done in range(0, count, each)]
    findings: list[Finding] = []
    verilated()  # for all workers together
    with processes.workers(workers) as pool:
        futures = [
            pool.submit(run_device, first + number, share, simulator)
            for number, share in enumerate(shares)
        ]
        for number, future in enumerate(futures, 1):
            findings += future.result()
            on_check(f"random rules: {len(findings)} of {count}, device {number}")
    return report(findings, time.perf_counter() - start)


def report(findings: Sequence[Finding], seconds: float) -> list[Check]:
    """Make checks of what became of the rules; each takes its share of the seconds."""
    groups: dict[str, list[Finding]] = {f"{border} border": [] for border in BORDERS}
    groups |= {"several borders": [], "cells that see none but themselves": []}
    *_, several, none = groups
    for one in findings:
        alone = f"{one.borders[0]} border" if one.borders else none
        groups[several if len(one.borders) > 1 else alone].append(one)
    checks = []
    for group, here in groups.items():
        wrong = [one.detail for one in here if one.detail]
        states = sum(one.states for one in here)
        saturated = np.mean([one.saturated for one in here]) if here else 0
        checks.append(
            Check(
                PART,
                f"golden model = program = Amaranth = Verilog: {group}",
                Verdict.FAILED if wrong or not here else Verdict.PASSED,
                len(here),
                "rules",
                seconds * len(here) / max(1, len(findings)),
                wrong[0]
                if wrong
                else f"{states:,} states of cells; {saturated:.0%} of the codes at the end of "
                "their format",
            )
        )
    operations = Counter(kind for one in findings for kind in one.operations)
    modes = Counter(mode for one in findings for mode in one.modes)
    devices = len({one.device for one in findings})
    return [
        *checks,
        _all("every operation", "operations", [kind.__name__ for kind in OPERATIONS], operations),
        _all(
            "every rounding and overflow with every border",
            "modes",
            [", ".join(mode) for mode in MODES],
            Counter({", ".join(mode): count for mode, count in modes.items()}),
            f", on {devices} devices",
        ),
    ]


def _all(
    claim: str, unit: str, wanted: Sequence[str], found: Counter[str], where: str = ""
) -> Check:
    """Make a check that everything wanted was found."""
    lacking = [name for name in wanted if name not in found]
    return Check(
        PART,
        claim,
        Verdict.FAILED if lacking else Verdict.PASSED,
        len(found),
        unit,
        0.0,
        f"{len(lacking)} of {len(wanted)} did not occur, {lacking[0]} for one: draw more rules"
        if lacking
        else f"each in {min(found.values())} rules or more{where}",
    )
