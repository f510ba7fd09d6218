"""A rule of any kind as functions on arrays: all that an experiment may know of a rule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.engine import Engine
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.operations import AROUND, Channel, Linear, Window
from scotopia.graph.qformat import IntArray
from scotopia.graph.step import StepGraph
from scotopia.model.float_rule import FloatRule
from scotopia.model.interpret import Interpreter
from scotopia.model.rule import to_state
from scotopia.model.running import NOISE_SEED, advance, random_words
from scotopia.quantize.integer_rule import IntegerRule

State = NDArray[Any]  # (channels and gates, h, w) of the cells, numbers as the rule keeps them
Inputs = Mapping[str, NDArray[Any]]  # of a frame's steps, by name, (h, w)
Values = NDArray[np.float64]
Video = NDArray[np.float32]  # (T, H, W) of the pixels, in [0, 1]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Automaton:
    """A rule of any kind, as functions on arrays without a batch.

    Behind its channels a state holds how far the gates were open in the step that led to it.

    Attributes
    ----------
    channel_names, steps_per_frame
        Of the rule.
    start
        (rows, columns) of cells to the first state.
    steps
        State, inputs of a frame, and the number of steps before, which decides what is left to
        chance, to the state after each step of the frame.
    given
        Pixels in [0, 1] and which of them arrive, (H, W), and the inputs of the frame before, to
        the inputs of a frame.
    all_values
        State to real numbers.
    scramble
        A generator and a state to random numbers of the state's shape, in the range of each
        channel.
    sees
        Whether it is shown anything; else it runs by itself.
    block
        A cell stands for block x block pixels.
    wraps
        Whether cells at the border see the opposite side.
    formats, ends
        Of each channel, and its lowest and highest value; none of a float rule.
    gated
        Channels that have a gate, the word that the graph calls "gate" and their name.
    own
        Numbers of the channels that a cell keeps to itself: nothing of its neighbours is in them.
    """

    channel_names: tuple[str, ...]
    steps_per_frame: int
    start: Callable[[int, int], State]
    steps: Callable[[State, Inputs, int], Iterator[State]]
    given: Callable[[Video, Mask, Inputs], Inputs]
    all_values: Callable[[State], Values]
    scramble: Callable[[np.random.Generator, State], State]
    sees: bool = True
    block: int = 1
    wraps: bool = False
    formats: tuple[str, ...] = ()
    ends: tuple[tuple[float, float], ...] = ()
    gated: tuple[str, ...] = ()
    own: tuple[int, ...] = ()

    def values(self, state: State) -> Values:
        """Values of the channels, (channels, h, w)."""
        return self.all_values(state)[: len(self.channel_names)]

    def opened(self, state: State) -> Values:
        """How far the gates were open, (gates, h, w)."""
        return self.all_values(state)[len(self.channel_names) :]

    def inputs(self, frames: Video, mask: Mask) -> list[Inputs]:
        """Return what is given in each frame of a clip, of which `mask` lets pixels through."""
        found: list[Inputs] = []
        for pixels, arrives in zip(frames, mask, strict=True):
            before = found[-1] if found else {}
            found.append(self.given(pixels, arrives, before) if self.sees else {})
        return found

    def run(self, state: State, given: Sequence[Inputs], frame: int = 0) -> Iterator[State]:
        """Run frames from a state on; yield the state of each step.

        `frame` is the number of the first frame.
        """
        for number, inputs in enumerate(given, frame):
            for after in self.steps(state, inputs, number * self.steps_per_frame):
                yield after
            state = after

    def run_frames(self, state: State, given: Sequence[Inputs], frame: int = 0) -> Iterator[State]:
        """As `run`, but yield the state of each frame's last step."""
        count = self.steps_per_frame
        return islice(self.run(state, given, frame), count - 1, None, count)


class Drawn:
    """Random planes of 0 and 1, drawn in order and kept, so that all runs of a rule see the same.

    Parameters
    ----------
    height, width, seed
        Of the registers.
    count
        Planes of a step.
    """

    def __init__(self, height: int, width: int, seed: int, count: int) -> None:
        self._registers = RowRegisters(height, width, seed)
        self._shape = count, height, width
        self._kept: list[NDArray[np.uint8]] = []

    def __getitem__(self, number: int) -> IntArray:
        while number >= len(self._kept):
            planes = self._registers.planes(self._shape[0])
            self._kept.append(np.packbits(planes.astype(np.uint8)))
        count = int(np.prod(self._shape))
        bits = np.unpackbits(self._kept[number], count=count)
        return bits.reshape(self._shape).astype(np.int64)


def automaton(rule: FloatRule | IntegerRule) -> Automaton:
    """Wrap a rule."""
    return _of_integers(rule) if isinstance(rule, IntegerRule) else _of_floats(rule)


def gates_of(graph: StepGraph) -> dict[str, int]:
    """Words that are the gate of a channel, by the channel's name."""
    words = {name: word for word, name in graph.names.items()}
    gates = {name: words.get(f"gate {name}") for name in graph.channels}
    return {name: word for name, word in gates.items() if word is not None}


def own_channels(graph: StepGraph) -> tuple[int, ...]:
    """Numbers of the channels in which nothing of a cell's neighbours is, after any steps."""
    reads: list[set[int | None]] = []  # by word: words of channels, and None for neighbours
    for index, operation in enumerate(graph.operations):
        around = isinstance(operation, Window) or (
            isinstance(operation, Linear) and operation.weight.shape[2] == AROUND
        )
        for lane, word in enumerate(graph.words(index)):
            if isinstance(operation, Channel):
                reads.append({word})
                continue
            arguments = operation.arguments
            if not isinstance(operation, Linear):
                arguments = tuple((words[lane],) for words in arguments)
            found: set[int | None] = {None} if around else set()
            reads.append(found.union(*(reads[one] for words in arguments for one in words)))
    words = list(graph.channels.values())
    own = {word: reads[after] for word, after in zip(words, graph.outputs, strict=True)}
    while shared := [word for word, seen in own.items() if not seen <= set(own)]:
        for word in shared:
            del own[word]
    return tuple(number for number, word in enumerate(words) if word in own)


def _of_integers(rule: IntegerRule) -> Automaton:
    formats = rule.graph.formats
    gates = {name: word for name, word in gates_of(rule.graph).items() if word in formats}
    graph = rule.graph.keeping({f"gate {name}": word for name, word in gates.items()})
    units = np.array([*rule.units, *(2.0 ** -formats[word].frac_bits for word in gates.values())])

    @cache
    def tools(height: int, width: int) -> tuple[Engine, Drawn]:
        drawn = Drawn(height, width, rule.noise_seed, rule.noise_planes)
        return Engine(graph, height, width), drawn

    def steps(state: State, inputs: Inputs, number: int) -> Iterator[State]:
        engine, drawn = tools(*state.shape[1:])
        for one in range(number, number + rule.steps_per_frame):
            noise = partial(drawn.__getitem__, one) if rule.noise_planes else None
            engine.state = state  # others may have run in between
            state = engine.advance(inputs, 1, noise)
            yield state

    def scramble(random: np.random.Generator, state: State) -> State:
        every = [
            random.integers(one.lowest, one.highest + 1, state.shape[1:])
            for one in graph.channel_formats
        ]
        return np.stack(every).astype(state.dtype)

    return Automaton(
        rule.channel_names,
        rule.steps_per_frame,
        start=lambda height, width: _with_gates(rule.initial_state(height, width), len(gates)),
        steps=steps,
        given=rule.shown,
        all_values=lambda state: state * units[:, None, None],
        scramble=scramble,
        sees=bool(rule.events),
        wraps="wrap" in graph.borders,
        formats=tuple(map(str, rule.channel_formats)),
        ends=tuple(
            (float(format.lowest * unit), float(format.highest * unit))
            for format, unit in zip(rule.channel_formats, rule.units, strict=True)
        ),
        gated=tuple(gates),
        own=own_channels(rule.graph),
    )


def _of_floats(rule: FloatRule) -> Automaton:
    gates = gates_of(rule.graph)
    graph = rule.graph.keeping({f"gate {name}": word for name, word in gates.items()})
    run, count = Interpreter(graph), rule.steps_per_frame

    @cache
    def drawn(height: int, width: int) -> Drawn:
        return Drawn(height, width, NOISE_SEED, graph.random_bits)

    def tensor(plane: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(plane, np.float32))[None]

    @torch.no_grad()
    def steps(state: State, inputs: Inputs, number: int) -> Iterator[State]:
        noise = None
        if run.random:
            planes = drawn(*state.shape[1:])
            words = [random_words(graph, planes[one]) for one in range(number, number + count)]
            noise = tensor(np.stack(words))
        held = {
            name: tensor(plane)[:, None].expand(-1, count, -1, -1) for name, plane in inputs.items()
        }
        found, _ = advance(run, tensor(state), held, count, 1, noise)
        yield from found[0].numpy()

    def scramble(random: np.random.Generator, state: State) -> State:
        flat = state.reshape(len(state), -1)
        low, high = flat.min(1)[:, None, None], flat.max(1)[:, None, None]
        return random.uniform(low, high, state.shape).astype(state.dtype)

    def given(pixels: Video, mask: Mask, before: Inputs) -> Inputs:
        shown = to_state(torch.from_numpy(np.where(mask, pixels, 0).astype(np.float32))).numpy()
        return rule.given(shown, mask, before)

    return Automaton(
        rule.channel_names,
        count,
        start=lambda height, width: _with_gates(
            rule.initial.state(height, width).astype(np.float32), len(gates)
        ),
        steps=steps,
        given=given,
        all_values=lambda state: state.astype(np.float64),
        scramble=scramble,
        sees=bool(rule.events),
        block=rule.block,
        wraps="wrap" in graph.borders,
        gated=tuple(gates),
        own=own_channels(rule.graph),
    )


def _with_gates(state: State, gates: int) -> State:
    """Add gates that are closed."""
    return np.concatenate([state, np.zeros((gates, *state.shape[1:]), state.dtype)])
