"""The integer rule: the one contract between the float world and the gates.

`IntegerRule.step` is **the golden model**. Every other implementation (the array's program, the
Amaranth cell, the emitted Verilog) derives from this object, and where one disagrees, it is wrong.
It loads without torch.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import file, golden
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval, Ranges, check, derive, prove
from scotopia.graph.operations import Border
from scotopia.graph.qformat import IntArray, QFormat
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import (
    Event,
    Initial,
    check_surroundings,
    given,
    pack_events,
    pack_initial,
    unpack_events,
    unpack_initial,
)
from scotopia.graph.trained import Masks, check_trained, pack_trained, unpack_trained
from scotopia.model.files import check_training_record, read_rule_file, write_rule_file

#: Kind of the files.
KIND = "integer rule"

#: What a record of training calls the factors by which channels are larger than those of the float
#: rule, {name: factor}; those that are missing are 1.
SCALES = "channel_scales"


class IntegerRule:
    """A step graph on codes, and what it needs to run.

    Attributes
    ----------
    graph
        The step; every channel, input and next state has a format.
    steps_per_frame
        Steps between two frames (1 to 64).
    events
        What arrives from outside.
    initial
        Values of the first state; the nearest codes are it.
    noise_seed
        Seed of the registers that all random bits come from, 0 to 2**32 - 1; see `RowRegisters`.
    training
        How the float rule was trained, and by what its channels were scaled, see `SCALES`.
    proof
        What each channel can be, by name: an invariant that `intervals.check` accepts, or None.
        Checked when a file is loaded; who changes a weight has to prove the rule again.
    """

    graph: StepGraph
    steps_per_frame: int
    events: tuple[Event, ...]
    initial: Initial
    noise_seed: int
    training: dict[str, Any]
    proof: Mapping[str, Interval] | None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the state's channels."""
        return tuple(self.graph.channels)

    @property
    def channel_formats(self) -> tuple[QFormat, ...]:
        """Formats of the state's channels."""
        return self.graph.channel_formats

    @property
    def input_words(self) -> dict[str, QFormat]:
        """Formats of the inputs, by name."""
        return {name: self.graph.formats[word] for name, word in self.graph.inputs.items()}

    @property
    def border(self) -> Border:
        """What the cells see beyond the border; of a rule that sees none, zeros."""
        return self.graph.borders[0] if self.graph.borders else "zero"

    @property
    def state_bits(self) -> int:
        """Bits that a cell keeps from frame to frame, flags included."""
        flags = sum(event.flag is not None for event in self.events)
        return sum(format.bits for format in self.channel_formats) + flags

    @property
    def noise_planes(self) -> int:
        """Random bits that a cell takes in each step."""
        return self.graph.random_bits

    @property
    def event_format(self) -> QFormat:
        """Format of an event's number; of one bit, if there are no events."""
        if not self.events:
            return QFormat(1, 0, signed=False)
        return self.input_words[self.events[0].value]

    @property
    def targets(self) -> tuple[tuple[str, QFormat], ...]:
        """Name and format of all that can be written from outside: what events write, channels."""
        events = [(event.value, self.input_words[event.value]) for event in self.events]
        return (*events, *zip(self.channel_names, self.channel_formats, strict=True))

    @property
    def code_bits(self) -> int:
        """Bits of the widest number that can be written from outside."""
        return max(format.bits for _, format in self.targets)

    def initial_state(self, height: int, width: int) -> IntArray:
        """Return the codes of the first state, (C, H, W)."""
        return self._codes(self.initial.state(height, width))

    def cleared_state(self, height: int, width: int) -> IntArray:
        """Return the codes of the state after a reset, (C, H, W): all cells are alike."""
        fill = self.initial.fill[:, None, None]
        return self._codes(np.broadcast_to(fill, (len(fill), height, width)))

    def loads(self, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield what makes the first state of the one after a reset: target, y, x and code."""
        state = self.initial_state(height, width)
        for channel, y, x in np.argwhere(state != self.cleared_state(height, width)).tolist():
            yield len(self.events) + channel, y, x, int(state[channel, y, x])

    def _codes(self, values: NDArray[np.float64]) -> IntArray:
        formats = zip(values, self.channel_formats, strict=True)
        return np.stack([format.quantize(channel) for channel, format in formats])

    @property
    def units(self) -> NDArray[np.float64]:
        """What a code of each channel is worth in the float rule that was quantized, (C,)."""
        factors = self.training.get(SCALES, {})
        pairs = zip(self.channel_names, self.channel_formats, strict=True)
        return np.array([2.0**-one.frac_bits / factors.get(name, 1) for name, one in pairs])

    def values(self, state: IntArray) -> NDArray[np.float64]:
        """Return the values (..., C, H, W) that a state's codes have in the float rule."""
        found: NDArray[np.float64] = state * self.units[:, None, None]
        return found

    def codes(self, values: NDArray[np.floating]) -> IntArray:
        """Return the codes nearest to values (C, H, W) that the channels have in the float rule."""
        rows = zip(values, self.units, self.channel_formats, strict=True)
        return np.stack(
            [one.quantize(np.ldexp(row / unit, -one.frac_bits)) for row, unit, one in rows]
        )

    def sample_codes(self, pixels: NDArray[np.floating], event: int = 0) -> IntArray:
        """Codes of pixels in [0, 1], any shape: what the sensor's converter delivers.

        An 8-bit pixel p becomes the code of p / 128 - 1; a narrower format drops low bits. One that
        has not all numbers in [-1, 1) gets black and white as its lowest and highest code.
        """
        format = self.targets[event][1] if self.events else self.event_format
        if not format.signed or format.int_bits < 1:
            span = format.highest - format.lowest
            scaled: IntArray = np.rint(np.asarray(pixels, np.float64) * span).astype(np.int64)
            return scaled + format.lowest
        eight_bit: IntArray = np.rint(np.asarray(pixels, np.float64) * 255).astype(np.int64) - 128
        shift = 7 - format.frac_bits
        return eight_bit >> shift if shift >= 0 else eight_bit << -shift

    def pixels(self, prediction: IntArray) -> NDArray[np.float32]:
        """Pixels in [0, 1] of codes of channel 0, the prediction of a rule that sees video."""
        values = self.channel_formats[0].values(prediction)
        return np.clip((values + 1) * (128 / 255), 0, 1).astype(np.float32)

    def given(
        self, sample: IntArray, valid: NDArray[np.bool_], before: Mapping[str, IntArray] = {}
    ) -> dict[str, IntArray]:
        """Return the inputs of a frame's steps, by name.

        Parameters
        ----------
        sample, valid
            (..., H, W) codes of events, and where there is one; of a rule that takes several,
            (E, ..., H, W).
        before
            Inputs of the frame before; by default all 0.
        """
        if len(self.events) < 2:
            return given(self.events, sample, valid, before)
        found: dict[str, IntArray] = {}
        for event, one, arrived in zip(self.events, sample, valid, strict=True):
            found |= given((event,), one, arrived, before)
        return found

    def shown(
        self,
        pixels: NDArray[np.floating],
        valid: NDArray[np.bool_],
        before: Mapping[str, IntArray] = {},
    ) -> dict[str, IntArray]:
        """Return the inputs of a frame of a video, by name: each event brings the same pixel.

        Parameters
        ----------
        pixels, valid
            (H, W), in [0, 1], and which of them arrive.
        before
            Inputs of the frame before; by default all 0.
        """
        found: dict[str, IntArray] = {}
        for number, event in enumerate(self.events):
            codes = np.where(valid, self.sample_codes(pixels, number), 0)
            found |= given((event,), codes, valid, before)
        return found

    def step(
        self,
        state: IntArray,
        inputs: Mapping[str, IntArray],
        noise: IntArray | None = None,
        watch: golden.Watch | None = None,
    ) -> IntArray:
        """Do one step, as `golden.step`: the golden model."""
        return golden.step(self.graph, state, inputs, noise, watch)

    @cached_property
    def ranges(self) -> Ranges:
        """Ranges of all words, by the proof, or by the channels' formats without one."""
        return derive(self.graph, self.proof)

    def with_proof(self) -> Self:
        """Return the rule with its range proof, which is saved with it.

        Raises
        ------
        InputError
            As `intervals.prove` does.
        """
        return self._proven(prove(self.graph, _first_ranges(self)))

    def with_packed_proof(self, proof: Any) -> Self:
        """Return the rule with a proof as a file holds it: {name: [lowest, highest]}.

        Raises
        ------
        InputError
            If it proves nothing, as `intervals.check` finds.
        TypeError, ValueError
            If it is no such object.
        """
        if not isinstance(proof, dict):
            raise TypeError(f"proof is a {type(proof).__name__}")
        channels = {name: unpack_interval(ends) for name, ends in proof.items()}
        return self._proven(check(self.graph, channels, _first_ranges(self)))

    def _proven(self, ranges: Ranges) -> Self:
        return dataclasses.replace(self, proof=ranges.channels)  # type: ignore[type-var]

    @property
    def packed_proof(self) -> dict[str, list[int]] | None:
        """The proof as a file holds it."""
        if self.proof is None:
            return None
        return {name: list(held.ends) for name, held in self.proof.items()}

    def with_graph(self, graph: StepGraph) -> "GraphRule":
        """Return a rule of another step in the same surroundings."""
        return GraphRule(
            graph, self.steps_per_frame, self.events, self.initial, self.noise_seed, self.training
        )

    def with_steps(self, steps_per_frame: int) -> "IntegerRule":
        """Return the same rule with another number of steps a frame."""
        raise NotImplementedError

    def pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return the rule as a description for JSON, and tensors."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the rule to one file, whole or not at all."""
        write_rule_file(path, KIND, *self.pack())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a rule.

        Raises
        ------
        InputError
            If the file is no integer rule of this version or the one before, contradicts itself,
            or holds a range proof that is wrong, or none and none can be found.
        """
        description, tensors = read_rule_file(path, KIND)
        kind = kind_of(description)
        if not issubclass(kind, cls):
            raise InputError(f"rule {path} is no rule of two layers: choose one")
        try:
            return kind.unpack(description, tensors)
        except InputError as error:
            raise InputError(f"rule {path}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error!r}): write it again"
            ) from error

    @classmethod
    def unpack(cls, packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Undo `pack`, of a rule of this class.

        Raises
        ------
        InputError, KeyError, TypeError, ValueError, IndexError
            If it was something else.
        """
        raise NotImplementedError


def kind_of(packed: Mapping[str, Any]) -> type[IntegerRule]:
    """Return the class of a rule that is packed so."""
    from .layered_rule import LayeredRule  # here: it needs this module

    return GraphRule if "graph" in packed else LayeredRule


@dataclass(frozen=True, eq=False)
class GraphRule(IntegerRule):
    """An integer rule that is written down as its graph.

    Attributes
    ----------
    trained
        Which numbers of the graph training may change.
    """

    graph: StepGraph
    steps_per_frame: int = 1
    events: tuple[Event, ...] = ()
    initial: Initial = dataclasses.field(default_factory=lambda: Initial.zeros(0))
    noise_seed: int = 1
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    proof: Mapping[str, Interval] | None = None
    trained: Masks = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_trained(self.graph, self.trained)
        for name, low, high in (("steps_per_frame", 1, 64), ("noise_seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise InputError(f"{name} {value} is outside {low} to {high}: choose one inside")
        if not len(self.initial.fill):
            object.__setattr__(self, "initial", Initial.zeros(len(self.graph.channels)))
        check_surroundings(self.graph, self.events, self.initial)
        for event in self.events:
            flag = event.flag and self.input_words[event.flag]
            if flag and (flag.bits != 1 or flag.signed):
                raise InputError(f"flag {event.flag} has format {flag}: choose UQ1.0")

    def with_steps(self, steps_per_frame: int) -> Self:
        """See `IntegerRule`."""
        return dataclasses.replace(self, steps_per_frame=steps_per_frame)

    def pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """See `IntegerRule`."""
        graph, weights = file.pack(self.graph)
        initial, values = pack_initial(self.initial)
        trained, masks = pack_trained(self.trained)
        description = {
            "graph": graph,
            "steps_per_frame": self.steps_per_frame,
            "events": pack_events(self.events),
            "initial": initial,
            "noise_seed": self.noise_seed,
            "training": self.training,
            "proof": self.packed_proof,
            "trained": trained,
        }
        return description, weights | values | masks

    @classmethod
    def unpack(cls, packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """See `IntegerRule`."""
        graph = file.unpack(packed["graph"], tensors)
        initial = unpack_initial(packed["initial"], tensors)
        rule = cls(
            graph,
            packed["steps_per_frame"],
            unpack_events(packed["events"]),
            initial,
            packed["noise_seed"],
            check_training_record(packed["training"]),
            trained=unpack_trained(packed.get("trained", {}), tensors),  # older files have none
        )
        return (
            rule.with_proof()
            if packed["proof"] is None
            else rule.with_packed_proof(packed["proof"])
        )


def _first_ranges(rule: IntegerRule) -> dict[str, Interval]:
    """Codes that the channels can have at first."""
    ends = zip(*rule.initial.ends(), strict=True)
    return {
        name: Interval(*map(int, format.quantize(np.array(pair))))
        for name, format, pair in zip(rule.channel_names, rule.channel_formats, ends, strict=True)
    }


def unpack_interval(packed: Any) -> Interval:
    """Return an interval of [lowest, highest]; TypeError or ValueError, if it is none."""
    lowest, highest = packed
    if type(lowest) is not int or type(highest) is not int:
        raise TypeError(f"range {packed} is not of integers")
    return Interval(lowest, highest)
