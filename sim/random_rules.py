"""Random integer rules, and whether all that computes a rule agrees on them.

Where a rule of one's own passes, another may still meet an instruction, a width or a rounding that
the first one never used. So rules are drawn at random: shapes, formats of every tensor, roundings,
overflows, borders, both kinds, stochastic ones, weights at the ends of their range.

Rules that fit the same gates share them: an array is compiled once and given the program of each
rule through its register port, as users load one.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import shape_code
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule, update_formats

from .amaranth_bench import run_amaranth
from .check import Check, Verdict
from .compare import compare
from .simulators import Bench, verilated
from .stimulus import Stimulus
from .verify import run_program

PART = "random rules"

#: Every rounding with every overflow, border and kind; seeds vary the rest.
MODES = tuple(
    itertools.product(Rounding, Overflow, ("zero", "replicate", "wrap"), ("gated", "residual"))
)


def mixed_rule(
    seed: int,
    config: RuleConfig,
    rounding: Rounding = Rounding.RND,
    coarse: bool = False,
    *,
    state: tuple[QFormat, ...] = (),
    extreme: bool = False,
) -> LayeredRule:
    """Draw a rule in which every tensor has formats of its own.

    Parameters
    ----------
    coarse
        Whether layers have fewer fraction bits than their outputs: shifts go to the left.
    state
        Formats of the learned channels; drawn by default.
    extreme
        Whether weights are -128, 0 or 127, and nothing else.
    """
    rng = np.random.default_rng(seed)
    drawn = tuple(QFormat(1, int(f)) for f in rng.integers(2, 9, config.channels))
    state = state or drawn
    all_inputs = {
        "sample": state[0],
        "trace": QFormat(0, config.trace_bits, signed=False),
        "valid": QFormat(1, int(rng.integers(0, 3)), signed=False),
        "fresh": QFormat(1, int(rng.integers(0, 3)), signed=False),
        "flicker": QFormat(int(rng.integers(0, 3)), 6),
        "innovation": QFormat(int(rng.integers(0, 3)), 6),
        "trust": QFormat(0, int(rng.integers(2, 9)), signed=False),
        "recall": QFormat(int(rng.integers(0, 3)), 5),
    }
    inputs = tuple(all_inputs[name] for name in config.inputs)
    hidden = tuple(
        QFormat(int(i), int(f), signed=False)
        for i, f in zip(*rng.integers([[-1], [3]], [[3], [8]], (2, config.hidden)), strict=True)
    )
    gate = QFormat(0, int(rng.integers(2, 9)), signed=False)

    def layer(inputs: tuple[QFormat, ...], outputs: tuple[QFormat, ...], taps: int) -> IntegerLayer:
        count = len(outputs)
        shape = (count, len(inputs), taps)
        weight = rng.choice([-128, 0, 127], shape) if extreme else rng.integers(-100, 101, shape)
        return IntegerLayer(
            weight=weight,
            weight_frac=rng.integers(-4, 1, count) if coarse else rng.integers(2, 10, count),
            bias=rng.integers(-9, 10, count) if coarse else rng.integers(-5000, 5001, count),
            inputs=inputs,
            outputs=outputs,
        )

    return LayeredRule(
        config=config,
        state_formats=state,
        sample_format=state[0],
        input_formats=inputs,
        gate_format=gate,
        perceive=layer(state + inputs, hidden, 9),
        update=layer(hidden, update_formats(config, state, gate), 1),
        rounding=rounding,
    )


def any_rule(seed: int, device: "Device | None" = None) -> LayeredRule:
    """Draw rule number `seed` of an endless series through all modes, perhaps for one device."""
    rng = np.random.default_rng(seed)
    rounding, overflow, border, kind = MODES[seed % len(MODES)]
    inputs = tuple(name for name in INPUTS if rng.random() < 0.6 or name == "trust")
    channels, hidden = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    fire_rate, trace_bits = float(rng.choice([1, 0.5])), int(rng.integers(1, 8))
    config = RuleConfig(
        kind=kind,  # type: ignore[arg-type]
        border=border,  # type: ignore[arg-type]
        channels=channels,
        hidden=hidden,
        inputs=inputs,
        steps_per_frame=2,
        fire_rate=fire_rate,
        trace_bits=trace_bits,
    )
    state: tuple[QFormat, ...] = ()
    if device is not None:
        config, state = device.shape(config), device.state
    coarse, extreme = rng.random() < 0.2, device is not None and rng.random() < 0.25
    rule = mixed_rule(seed, config, rounding, coarse, state=state, extreme=extreme)
    most = min(8, rule.gate_format.frac_bits) if kind == "gated" else 0
    dither = int(rng.integers(0, most + 1)) if rng.random() < 0.3 else 0
    return replace(rule, overflow=overflow, dither=dither)


@dataclass(frozen=True)
class Device:
    """An array, and what the rules that it can be given have in common.

    Attributes
    ----------
    number
        In the series of devices; draws all else.
    height, width
        Cells.
    example
        Its config decides border, channels, trace and steps a frame.
    state
        Formats of the learned channels.
    stochastic
        Whether its cells draw random bits.
    """

    number: int
    height: int
    width: int
    example: RuleConfig
    state: tuple[QFormat, ...]
    stochastic: bool

    @classmethod
    def draw(cls, number: int) -> "Device":
        """Draw a device; all borders take turns."""
        rng = np.random.default_rng([number, 1])
        # Amaranth's simulator takes a second for some thousand clocks: rules are many, not large.
        height, width = (int(side) for side in rng.integers(1, 5, 2))
        channels = int(rng.integers(1, 4))
        example = RuleConfig(
            border=("zero", "replicate", "wrap")[number % 3],
            channels=channels,
            hidden=1,
            inputs=(),
            steps_per_frame=int(rng.integers(1, 3)),
            trace_bits=int(rng.integers(1, 8)),
        )
        state = tuple(QFormat(1, int(f)) for f in rng.integers(2, 9, channels))
        return cls(number, height, width, example, state, bool(rng.random() < 0.5))

    def shape(self, config: RuleConfig) -> RuleConfig:
        """Return the config as it can be on this device."""
        inputs = config.inputs
        if self.example.channels == 1:  # there is no doubt
            inputs = tuple(name for name in inputs if name not in ("trust", "recall"))
        return replace(
            config,
            hidden=min(config.hidden, 2),
            border=self.example.border,
            channels=self.example.channels,
            inputs=inputs,
            steps_per_frame=self.example.steps_per_frame,
            trace_bits=self.example.trace_bits,
            fire_rate=config.fire_rate if self.stochastic else 1.0,
        )

    def rules(self, count: int) -> Iterator[tuple[int, LayeredRule]]:
        """Yield `count` rules that can run on the gates of the first, with their seeds."""
        found, code = 0, 0
        for seed in itertools.count(self.number << 20):
            rule = any_rule(seed, self)
            if (rule.noise_planes > 0) != self.stochastic:
                continue
            try:
                program = Program.compile(rule)
            except InputError:  # more planes than there are
                continue
            code = code or shape_code(program, self.height, self.width)
            if shape_code(program, self.height, self.width) == code:
                yield seed, rule
                found += 1
            if found == count:
                return


@dataclass(frozen=True)
class Finding:
    """What became of one rule.

    Attributes
    ----------
    device, seed
        Which.
    mode
        Its kind, border, rounding and overflow.
    states
        Of cells, compared with the golden model's, in each of the three.
    saturated
        Share of the codes of learned channels that lie at an end of their format.
    detail
        The first mismatch, if there was one.
    """

    device: int
    seed: int
    mode: tuple[Any, ...]
    states: int
    saturated: float
    detail: str


#: Frames that each rule is shown, and share of pixels that arrive.
FRAMES, DENSITY = 2, 0.3


def stimulus_of(rule: LayeredRule, seed: int, height: int, width: int) -> Stimulus:
    """Return random frames, and what the golden model makes of each."""
    rng = np.random.default_rng(seed)
    shape = FRAMES, height, width
    mask = rng.random(shape) < DENSITY
    # Reading takes a simulator longer than a step: once a frame.
    return Stimulus.of(rule, rng.random(shape), mask, every=rule.steps_per_frame)


def run_device(number: int, count: int, simulator: str = "verilator") -> list[Finding]:
    """Compare `count` rules of a device: golden model, program, Amaranth and Verilog."""
    device = Device.draw(number)
    findings = []
    with Bench(simulator) as bench, processes.temporary_folder() as name:
        build = None
        for seed, rule in device.rules(count):
            program = Program.compile(rule)
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
    device: Device, seed: int, rule: LayeredRule, stimulus: Stimulus, found: dict[str, IntArray]
) -> Finding:
    """Compare the states that each stage made of a stimulus with the golden model's."""
    details = [
        f"{name}, {first}"
        for name, states in found.items()
        if (first := compare(stimulus.expected, states, rule.channel_names).first)
    ]
    learned = stimulus.expected[:, : rule.config.channels].swapaxes(0, 1)
    ends = [
        np.isin(codes, (format.lowest, format.highest))
        for codes, format in zip(learned, rule.state_formats, strict=True)
    ]
    config = rule.config
    return Finding(
        device.number,
        seed,
        (rule.rounding, rule.overflow, config.border, config.kind),
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
    A check for each overflow, kind and border, and one that every mode occurred.
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


def report(findings: list[Finding], seconds: float) -> list[Check]:
    """Make checks of what became of the rules; each takes its share of the seconds."""
    checks = []
    for kind, border in itertools.product(("gated", "residual"), ("zero", "replicate", "wrap")):
        here = [one for one in findings if one.mode[2:] == (border, kind)]
        wrong = [one.detail for one in here if one.detail]
        states = sum(one.states for one in here)
        saturated = np.mean([one.saturated for one in here]) if here else 0
        checks.append(
            Check(
                PART,
                f"golden model = program = Amaranth = Verilog: {kind}, {border} border",
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
    modes = Counter(one.mode for one in findings)
    lacking = [mode for mode in MODES if mode not in modes]
    names = ", ".join(map(str, lacking[0])) if lacking else ""
    checks.append(
        Check(
            PART,
            "every rounding and overflow with every kind and border",
            Verdict.FAILED if lacking else Verdict.PASSED,
            len(modes),
            "modes",
            0.0,
            f"{len(lacking)} of {len(MODES)} did not occur, {names} for one: draw more rules"
            if lacking
            else f"each in {min(modes.values())} rules or more, on "
            f"{len({one.device for one in findings})} devices",
        )
    )
    return checks
