"""Random rules, states and stimuli for all stages; everything is seeded.

Fixtures that return functions, because importlib mode gives tests no module to import from. They
live as long as the session, so that Hypothesis may use them.
"""

import itertools
import math
import os
import re
import resource
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

# Matrices here are so small that a second thread only waits for the first: spinning, it takes
# fifteen times the processor's time. NumPy's and SciPy's libraries look here when imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

from scotopia.graph import native as graph_native
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.hdl.serial_protocol import EVENT, FRAME, STATUS
from scotopia.model import native
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.rule import Rule
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.integer_rule import IntArray, IntegerRule
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule, update_formats
from scotopia.sim import simulators
from scotopia.sim.stimulus import Stimulus

torch.set_num_threads(1)


_is_available, _compiles_graphs = native.available, graph_native.available


@pytest.fixture(scope="session")
def is_alive() -> Callable[[int], bool]:
    """Say of a process, by its number, whether it lives on: to be killed takes it a moment."""

    def alive(process: int) -> bool:
        for _ in range(100):
            try:
                text = Path(f"/proc/{process}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return False
            if text.rpartition(")")[2].split()[0] in "ZX":
                return False
            time.sleep(0.05)
        return True

    return alive


@pytest.fixture(scope="session", autouse=True)
def no_compiler() -> None:
    """Compiling takes seconds for each shape of rule; test_unroll.py compares the results."""
    native.available = lambda: False  # type: ignore[assignment]
    graph_native.available = lambda: False  # type: ignore[assignment]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the compiled loop where there is a compiler, for tests that run thousands of steps."""
    monkeypatch.setattr(native, "available", _is_available)
    monkeypatch.setattr(graph_native, "available", _compiles_graphs)


@pytest.fixture(scope="session", autouse=True)
def one_verilated(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have the simulator's own library compiled once for all processes of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "verilated"
    folder.mkdir(exist_ok=True)
    simulators.verilated = lambda: folder


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can have more than so many bytes, as if the disk were full."""
    return _largest_file


@pytest.fixture(scope="session")
def small_config() -> Callable[..., RuleConfig]:
    """A config of few numbers and all inputs, in which any field can be set."""

    def make(**fields: object) -> RuleConfig:
        small = {
            "channels": 3,
            "hidden": 3,
            "inputs": INPUTS,
            "steps_per_frame": 2,
            "trace_bits": 3,
        }
        return RuleConfig(**{**small, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def float_rule() -> Callable[[int, RuleConfig], Rule]:
    """A float rule with weights so large that hidden neurons, gates and states saturate."""

    def make(seed: int, config: RuleConfig) -> Rule:
        rng = np.random.default_rng(seed)
        rule = Rule(config)
        with torch.no_grad():
            for parameter in rule.parameters():
                parameter.copy_(torch.from_numpy(rng.normal(0, 0.5, tuple(parameter.shape))))
        return rule

    return make


@pytest.fixture(scope="session")
def random_rule(float_rule: Callable[..., Rule]) -> Callable[..., IntegerRule]:
    """A float rule, quantized."""

    def make(
        seed: int,
        config: RuleConfig,
        precision: Precision | None = None,
        rounding: Rounding = Rounding.RND,
    ) -> IntegerRule:
        precision = precision or Precision(weight=12, state=8)
        ranges = np.random.default_rng(seed).uniform(0.3, 5, config.hidden)
        hidden = [unsigned_format(largest, precision.hidden) for largest in ranges]
        rule = float_rule(seed, config)
        return Formats.choose(rule, hidden, precision, rounding).integer_rule(rule)

    return make


#: Every rounding with every overflow, border and kind of a rule of two layers.
LAYERED_MODES = tuple(
    itertools.product(Rounding, Overflow, ("zero", "replicate", "wrap"), ("gated", "residual"))
)


def _mixed_rule(
    seed: int,
    config: RuleConfig,
    rounding: Rounding = Rounding.RND,
    coarse: bool = False,
    *,
    state: tuple[QFormat, ...] = (),
) -> LayeredRule:
    """Draw a rule in which every tensor has formats of its own.

    Parameters
    ----------
    coarse
        Whether layers have fewer fraction bits than their outputs: shifts go to the left.
    state
        Formats of the learned channels; drawn by default.
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
        return IntegerLayer(
            weight=rng.integers(-100, 101, shape),
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


def _layered_rule(seed: int) -> LayeredRule:
    """Draw rule number `seed` of an endless series through all modes."""
    rng = np.random.default_rng(seed)
    rounding, overflow, border, kind = LAYERED_MODES[seed % len(LAYERED_MODES)]
    config = RuleConfig(
        kind=kind,  # type: ignore[arg-type]
        border=border,  # type: ignore[arg-type]
        channels=int(rng.integers(2, 4)),
        hidden=int(rng.integers(1, 4)),
        inputs=tuple(name for name in INPUTS if rng.random() < 0.6 or name == "trust"),
        steps_per_frame=2,
        fire_rate=float(rng.choice([1, 0.5])),
        trace_bits=int(rng.integers(1, 8)),
    )
    rule = _mixed_rule(seed, config, rounding, bool(rng.random() < 0.2))
    most = min(8, rule.gate_format.frac_bits) if kind == "gated" else 0
    dither = int(rng.integers(0, most + 1)) if rng.random() < 0.3 else 0
    return replace(rule, overflow=overflow, dither=dither)


@pytest.fixture(scope="session")
def mixed_rule() -> Callable[..., LayeredRule]:
    """A rule of two layers in which every tensor has formats of its own."""
    return _mixed_rule


@pytest.fixture(scope="session")
def layered_rule() -> Callable[[int], LayeredRule]:
    """An endless series of rules of two layers: in every 126, each mode once."""
    return _layered_rule


@pytest.fixture(scope="session")
def extreme_state() -> Callable[..., IntArray]:
    """State (..., C, H, W) of random codes, half of them a format's lowest or highest."""

    def make(rule: IntegerRule, seed: int, *shape: int) -> IntArray:
        rng = np.random.default_rng(seed)
        channels = []
        for format in rule.channel_formats:
            codes = rng.integers(format.lowest, format.highest + 1, shape)
            extremes = rng.choice([format.lowest, format.highest], shape)
            channels.append(np.where(rng.random(shape) < 0.5, extremes, codes))
        return np.stack(channels, -3)

    return make


@pytest.fixture(scope="session")
def random_stimulus() -> Callable[..., Stimulus]:
    """Frames of random pixels, of which three in ten arrive."""

    def make(rule: IntegerRule, seed: int, frames: int, height: int, width: int) -> Stimulus:
        rng = np.random.default_rng(seed)
        shape = (frames, height, width)
        return Stimulus.of(rule, rng.random(shape), rng.random(shape) < 0.3)

    return make


@pytest.fixture(scope="session")
def round_exactly() -> Callable[[Fraction, Rounding], int]:
    """Round a rational number by the words of UG1399, with no arithmetic of the package."""

    def make(value: Fraction, rounding: Rounding) -> int:
        below, above = math.floor(value), math.ceil(value)
        if rounding is Rounding.TRN:
            return below
        if rounding is Rounding.TRN_ZERO:
            return math.trunc(value)
        if value - below != above - value:
            return below if value - below < above - value else above
        return {
            Rounding.RND: above,
            Rounding.RND_ZERO: min(below, above, key=abs),
            Rounding.RND_INF: max(below, above, key=abs),
            Rounding.RND_MIN_INF: below,
            Rounding.RND_CONV: below if below % 2 == 0 else above,
        }[rounding]

    return make


class Moment:
    """Random codes of all that a step of a graph reads."""

    def __init__(self, graph: StepGraph, seed: int, height: int = 4, width: int = 5) -> None:
        rng = np.random.default_rng(seed)

        def codes(word: int) -> IntArray:
            format = graph.formats[word]
            return rng.integers(format.lowest, format.highest + 1, (height, width))

        self.state = np.stack([codes(word) for word in graph.channels.values()])
        self.inputs = {name: codes(word) for name, word in graph.inputs.items()}
        drawn = rng.integers(0, 2, (graph.random_bits, height, width))
        self.noise = drawn if graph.random_bits else None


@pytest.fixture(scope="session")
def moment() -> type[Moment]:
    return Moment


class CProgram:
    """A program of headers that `graph.c` wrote, each of which it does steps of.

    It is compiled with every warning, and with the sanitizers where the compiler has them.
    """

    WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")

    def __init__(self, headers: Sequence[tuple[StepGraph, str]], folder: Path) -> None:
        """Take graphs and their headers, the first of which has the name `rule_0`, and so on."""
        self.graphs = [graph for graph, _ in headers]
        self.codes = [self._code_type(text) for _, text in headers]
        self.main = folder / "main.c"
        for i, (_, text) in enumerate(headers):
            (folder / f"rule_{i}.h").write_text(text)
        includes = "\n".join(f'#include "rule_{i}.h"' for i in range(len(headers)))
        cases = "\n".join(self._case(i, text) for i, (_, text) in enumerate(headers))
        self.main.write_text(_MAIN.replace("INCLUDES", includes).replace("CASES", cases))

    @staticmethod
    def _code_type(text: str) -> str:
        return re.findall(r"_step\(\s*const (\w+) \*state", text)[-1]

    @staticmethod
    def inputs_of(text: str) -> list[tuple[str, str]]:
        """Return the type and the name of each input."""
        taken = text.rpartition(" *state,")[2].partition("const uint8_t *noise")[0]
        return re.findall(r"const (\w+) \*(\w+)", taken)

    def _case(self, i: int, text: str) -> str:
        n, inputs = f"rule_{i}", self.inputs_of(text)
        scratch = re.findall(r"(\w+) \*scratch,", text)[-1]
        planes = f"cells * RULE_{i}_PLANES"
        draw = ""
        if f"{n}_noise(" in text:
            draw = (
                f"if (drawn) {{ if (step == 0) {n}_seed_rows(rows, height); "
                f"{n}_noise(rows, noise, height, width); }} else "
            )
        return "\n".join(
            [
                f"case {i}: {{",
                f"    const size_t size = cells * RULE_{i}_CHANNELS * sizeof({self.codes[i]});",
                f"    {self.codes[i]} *state = ({self.codes[i]} *)take(size), *swap;",
                f"    {self.codes[i]} *next = ({self.codes[i]} *)malloc(size + 1);",
                f"    {scratch} *scratch = ({scratch} *)malloc"
                f"(cells * RULE_{i}_SCRATCH * sizeof({scratch}) + 1);",
                f"    uint8_t *noise = (uint8_t *)malloc({planes} + 1);",
                "    for (int step = 0; step < steps; step++) {",
                *(f"        {t} *{name} = ({t} *)take(cells * sizeof({t}));" for t, name in inputs),
                f"        {draw}read_all(noise, {planes});",
                f"        {n}_step(state, {''.join(f'{name}, ' for _, name in inputs)}"
                "noise, scratch, next, height, width);",
                "        fwrite(next, 1, size, stdout);",
                "        swap = state, state = next, next = swap;",
                *(f"        free({name});" for _, name in inputs),
                "    }",
                "    free(state), free(next), free(scratch), free(noise);",
                "    break;",
                "}",
            ]
        )

    def add(self, number: int, statements: str) -> None:
        """Have the program do something else at a number."""
        case = f"case {number}: {{\n{statements}\nbreak;\n}}\n    default:"
        self.main.write_text(self.main.read_text().replace("default:", case, 1))

    def compiled(self) -> Self:
        """Compile it; its graphs' constants, too, are in order."""
        sanitizers = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
        if self.compile("cc", "-std=c99", *sanitizers).returncode != 0:
            done = self.compile("cc", "-std=c99")
            assert done.returncode == 0, done.stderr
        return self

    def compile(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Try to compile it so."""
        files = [str(self.main), "-o", str(self.main.with_suffix(""))]
        command = (*command, *self.WARNINGS, *files)
        return subprocess.run(command, capture_output=True, text=True, timeout=250)

    def run(self, number: int, given: bytes, *arguments: int) -> bytes:
        """Run a case: steps, height, width, whether the header draws the noise."""
        command = [str(self.main.with_suffix("")), str(number), *map(str, arguments)]
        done = subprocess.run(command, input=given, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def steps(
        self,
        number: int,
        state: IntArray,
        inputs: Sequence[Mapping[str, IntArray]],
        noise: IntArray | None = None,
        drawn: bool = False,
    ) -> IntArray:
        """Return the states after steps of a graph, one for each of `inputs`.

        `noise` is what all steps take, or they take none, or what is `drawn` by the header.
        """
        graph = self.graphs[number]
        given = state.astype(self.codes[number][:-2]).tobytes()
        types = [t for t, _ in self.inputs_of((self.main.parent / f"rule_{number}.h").read_text())]
        for step in inputs:
            for name, kind in zip(graph.inputs, types, strict=True):
                given += step[name].astype(kind[:-2]).tobytes()
            if noise is not None:
                given += noise.astype(np.uint8).tobytes()
        size = state.shape[-2:]
        found = self.run(number, given, len(inputs), *size, int(drawn))
        codes = np.frombuffer(found, self.codes[number][:-2]).astype(np.int64)
        return codes.reshape(len(inputs), *state.shape)


_MAIN = """
#include <stdio.h>
#include <stdlib.h>
INCLUDES

static void read_all(void *memory, size_t bytes)
{
    if (fread(memory, 1, bytes, stdin) != bytes) {
        exit(2);
    }
}

static void *take(size_t bytes)
{
    void *memory = malloc(bytes + 1); /* of 0 bytes it may return NULL */
    if (memory == NULL) {
        exit(2);
    }
    read_all(memory, bytes);
    return memory;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        return 2;
    }
    const int number = atoi(argv[1]), steps = atoi(argv[2]), drawn = atoi(argv[5]);
    const int height = atoi(argv[3]), width = atoi(argv[4]);
    const size_t cells = (size_t)height * (size_t)width;
    uint32_t *rows = (uint32_t *)malloc(4 * (size_t)height + 1);
    (void)drawn;
    switch (number) {
CASES
    default:
        break;
    }
    free(rows);
    return 0;
}
"""


@pytest.fixture(scope="session")
def c_program() -> type[CProgram]:
    return CProgram


class FakeBoard:
    """A board that is the golden model, wrong in as many codes of each frame as it is told."""

    def __init__(
        self, rule: IntegerRule, height: int, width: int, wrong: int = 0, frames: int = 0
    ) -> None:
        self.rule, self.wrong, self.frames = rule, wrong, frames
        self.state = rule.initial_state(height, width)
        self.sample = np.zeros((height, width), np.int64)
        self.valid = np.zeros((height, width), bool)
        self.answer = b""

    def write(self, data: bytes) -> int:
        rest = list(data)
        while rest:
            command = rest.pop(0)
            if command == EVENT:
                x, y, low, high = (rest.pop(0) for _ in range(4))
                self.sample[y, x] = int.from_bytes((low, high), "little", signed=True)
                self.valid[y, x] = True
            elif command == FRAME:
                for _ in range(self.rule.config.steps_per_frame):
                    self.state = self.rule.step(
                        self.state, self.rule.given(self.sample, self.valid)
                    )
                codes = self.state[0].copy()
                codes.flat[: self.wrong] ^= 1
                self.answer += codes.astype("<i2").tobytes()
                self.valid[:] = False
                self.frames += 1
            elif command == STATUS:
                self.answer += struct.pack("<HHBB", self.frames, 0, 0, 0)
        return len(data)

    def read(self, count: int) -> bytes:
        answer, self.answer = self.answer[:count], self.answer[count:]
        return answer


@pytest.fixture(scope="session")
def fake_board() -> type[FakeBoard]:
    """What stands for a serial port with a board behind it."""
    return FakeBoard
