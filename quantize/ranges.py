"""Range proof: nothing in an integer rule overflows, whatever arrives, wherever, for ever.

Interval analysis in exact integers, over all cells at once. The state's intervals are an inductive
**invariant**: they hold the initial state, and one step from any state inside them, with any
sample and any neighbours inside them, stays inside. They are found by iteration from the initial
state with widening (Cousot and Cousot, "Abstract interpretation: a unified lattice model for
static analysis of programs", 1977), but `check` needs one step and no trust in how they were found.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.graph.golden import Watch
from scotopia.graph.intervals import ZERO, Interval, Ranges, compare_with
from scotopia.graph.intervals import derive as graph_ranges
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, required_bits, shift_right

from .layered_rule import IntegerLayer, LayeredRule

#: Steps after which a channel that still grows is widened, and twice that, to its whole format.
PATIENCE = 64

#: Width of the accumulators of the two layers, sign included, unless another is asked for.
LAYER_BITS = 32

#: The same for products of a cell's own numbers: what the golden model's integers hold.
PRODUCT_BITS = 64


@dataclass(frozen=True)
class Result:
    """Ranges of a number that each step computes.

    Attributes
    ----------
    total
        The sum of its products and its bias, exact, before rounding. Enough for an accumulator
        that counts modulo 2**bits: whatever overflows on the way comes back.
    partial
        Every sum of some of these products and the bias, so in any order, with or without what
        rounding adds. For an accumulator that may never overflow, such as a C integer.
    rounded
        The total after the shift to the right; of a gated update, its sum with the channel.
    fitted
        The result as it is stored, in its format.
    """

    total: Interval
    partial: Interval
    rounded: Interval
    fitted: Interval

    @property
    def accumulator_bits(self) -> int:
        """Width, sign included, of an accumulator that no partial sum exceeds."""
        return required_bits(*self.partial.ends)

    @property
    def clips_below(self) -> bool:
        """Whether it can saturate at the lowest code; a hidden neuron rests there (ReLU)."""
        return self.rounded.lowest < self.fitted.lowest

    @property
    def clips_above(self) -> bool:
        """Whether it can saturate at the highest code."""
        return self.rounded.highest > self.fitted.highest


@dataclass(frozen=True)
class RangeProof:
    """Ranges of all that a rule computes.

    Attributes
    ----------
    channels
        The invariant, by the names of `config.channel_names`.
    results
        In the order of evaluation: "input recall", "hidden neuron h0", "candidate x0" and "gate x0"
        or "residual x0", then "channel x0", a learned channel after its update.
    """

    channels: dict[str, Interval]
    results: dict[str, Result]

    @property
    def widest_accumulator(self) -> str:
        """Name of the result that needs the widest accumulator."""
        return max(self.results, key=lambda name: self.results[name].accumulator_bits)

    @property
    def accumulator_bits(self) -> int:
        """Width, sign included, of an accumulator that no partial sum of any result exceeds."""
        return self.results[self.widest_accumulator].accumulator_bits

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of the results that can saturate; a hidden neuron at 0 does not count."""
        return tuple(
            name
            for name, result in self.results.items()
            if result.clips_above or (result.clips_below and not name.startswith("hidden"))
        )

    def narrower(self, rule: LayeredRule) -> dict[str, int]:
        """Bits that suffice for the channels, inputs and hidden neurons that need fewer, by name.

        An input that shows a register is that register.
        """
        held = self.channels | {name: result.fitted for name, result in self.results.items()}
        stored = dict(zip(rule.config.channel_names, rule.channel_formats, strict=True))
        stored |= dict(zip(_input_names(rule), rule.input_formats, strict=True))
        stored |= dict(zip(_hidden_names(rule), rule.perceive.outputs, strict=True))
        needed = {
            # An unsigned format lacks the sign bit; nothing has no bits.
            name: max(required_bits(*held[name].ends) - (not format.signed), 1)
            for name, format in stored.items()
        }
        return {name: bits for name, bits in needed.items() if bits < stored[name].bits}

    def pack(self) -> dict[str, Any]:
        """Return the proof as JSON holds it, in order, an interval as [lowest, highest]."""
        return {
            "channels": [
                {"name": name, "range": list(held.ends)} for name, held in self.channels.items()
            ],
            "results": [
                {"name": name} | {field: list(getattr(result, field).ends) for field in _FIELDS}
                for name, result in self.results.items()
            ],
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Self:
        """Undo `pack`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it was something else.
        """
        return cls(
            {entry["name"]: _unpack(entry["range"]) for entry in packed["channels"]},
            {
                entry["name"]: Result(**{field: _unpack(entry[field]) for field in _FIELDS})
                for entry in packed["results"]
            },
        )


_FIELDS = [field.name for field in dataclasses.fields(Result)]


def prove(rule: LayeredRule, accumulator_bits: int | None = None) -> RangeProof:
    """Prove that nothing overflows in any number of steps from the initial state.

    Parameters
    ----------
    accumulator_bits
        Width of every accumulator, sign included; by default `LAYER_BITS` for the two layers and
        `PRODUCT_BITS` for the rest.

    Raises
    ------
    InputError
        If a partial sum can exceed its accumulator or, where overflow is WRAP, a result its format.
    """
    limits = _channel_limits(rule)
    box = dict.fromkeys(limits, ZERO)
    proof = derive(rule, box)
    steps = 0
    while growing := {n: to for n, to in _after(rule, proof).items() if not box[n].holds(to)}:
        steps += 1
        for name, after in growing.items():
            # What comes close to its limit by ever smaller steps is given it at once: a gated
            # channel that of its candidate, and in the end any channel its format.
            limit = after
            candidate = proof.results.get(f"candidate {name}")
            if steps > PATIENCE and candidate is not None:
                limit |= candidate.fitted
            if steps > 2 * PATIENCE:
                limit |= limits[name]
            held = box[name]
            box[name] = Interval(
                limit.lowest if after.lowest < held.lowest else held.lowest,
                limit.highest if after.highest > held.highest else held.highest,
            )
        proof = derive(rule, box)
    _check_accumulators(rule, proof, accumulator_bits)
    return proof


def with_proof(rule: LayeredRule) -> LayeredRule:
    """Return the rule with its range proof, which is saved with it.

    Raises
    ------
    InputError
        As `prove` does.
    """
    return dataclasses.replace(rule, proof=prove(rule))


def check(rule: LayeredRule, proof: RangeProof, accumulator_bits: int | None = None) -> None:
    """Check a proof, however it was found, by one step from its channels' ranges.

    Ranges may be wider than necessary, as long as they prove what is claimed.

    Raises
    ------
    InputError
        If it does not prove what `prove` does: the first range at fault.
    """
    channel_limits, limits = _channel_limits(rule), _limits(rule)
    for kind, found, expected in (
        ("channels", proof.channels, channel_limits),
        ("results", proof.results, limits),
    ):
        if found.keys() != expected.keys():
            wrong = sorted(found.keys() ^ expected.keys())
            raise InputError(
                f"range proof is of other {kind} than the rule's ({wrong[0]}): prove it again"
            )
    for name, limit in channel_limits.items():
        _check_holds(f"channel {name}'s format", limit, proof.channels[name])
    derived = derive(rule, proof.channels)
    for name, after in _after(rule, derived).items():
        _check_holds(f"range of channel {name}", proof.channels[name], ZERO | after)
    for name, result in derived.results.items():
        claimed = proof.results[name]
        for field in _FIELDS:
            _check_holds(
                f"{field} range of {name}", getattr(claimed, field), getattr(result, field)
            )
        # Else a result that saturates could hide it.
        _check_holds(f"{name}'s format", limits[name], claimed.fitted)
    _check_accumulators(rule, proof, accumulator_bits)


def derive(rule: LayeredRule, channels: Mapping[str, Interval]) -> RangeProof:
    """Return the ranges of all that one step computes from states inside `channels`.

    With any sample, any neighbours inside them, and any random bits. Sound for every rounding,
    since all of them are monotone.

    Raises
    ------
    InputError
        If a sum can exceed what the golden model holds or, where overflow is WRAP, a result its
        format.
    """
    return _Step(rule, dict(channels)).proof


def monitor(rule: LayeredRule, proof: RangeProof | None = None) -> LayeredRule:
    """Return the rule with a golden model that compares what it computes with a proof.

    By default the rule's own proof, or a new one. `step` then raises `OutOfRange` where any word
    leaves its range.
    """
    proof = proof or rule.proof or prove(rule)
    ranges = graph_ranges(rule.graph, proof.channels)
    words = {name: word for word, name in rule.graph.names.items()}
    for name, result in proof.results.items():
        ranges.words[words[name]] = result.fitted
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return _Monitored(**fields | {"proof": proof}, watched=ranges)


class _Step:
    """One abstract step; its results fill up in the order of evaluation."""

    def __init__(self, rule: LayeredRule, box: dict[str, Interval]) -> None:
        self.rule, self.limits = rule, _limits(rule)
        self.proof = RangeProof(box, {})
        config = rule.config
        learned = [box[name] for name in config.channel_names[: config.channels]]
        seen = learned + self.inputs(learned)
        hidden = self.layer(rule.perceive, _hidden_names(rule), _taps(seen, config.border))
        updates = self.layer(rule.update, _update_names(rule), _array(hidden)[..., None])
        for i, (name, x) in enumerate(zip(_learned_names(rule), learned, strict=True)):
            if config.kind == "residual":
                self.residual(name, x, updates[i])
            else:
                self.gated(name, x, updates[i], updates[config.channels + i])

    def inputs(self, learned: list[Interval]) -> list[Interval]:
        rule, box = self.rule, self.proof.channels
        register = _register_after(rule, box)
        last, trace, prediction = register["sample"], register["trace"], learned[0]
        arriving, frac = Interval.of(rule.sample_format), rule.sample_format.frac_bits
        # Since any sample may arrive, all differences from it hold the 0 of where none arrives.
        sums: dict[str, tuple[list[Interval], int]] = {  # name: summands, fraction bits
            "sample": ([last], frac),
            "trace": ([trace], rule.trace_format.frac_bits),
            "valid": ([Interval(0, 1)], 0),
            "fresh": ([Interval(0, int(box["trace"].lowest < rule.trace_format.highest))], 0),
            "flicker": ([arriving, -box["sample"]], frac),
            "innovation": ([arriving, -prediction], frac),
        }
        fitted: list[Interval] = []
        for name, format in zip(rule.config.inputs, rule.input_formats, strict=True):
            if name == "trust":
                sums[name] = self.trust(learned[rule.config.doubt], trace)
            elif name == "recall":
                trust = fitted[-1]
                sums[name] = (
                    [trust * last, trust * -prediction],
                    frac + rule.trust_format.frac_bits,
                )
            summands, sum_frac = sums[name]
            total, partial = _sum(summands), _partial_sums(summands)
            if name == "trust":  # its own summands are sums, clipped
                bits = rule.trace_format.frac_bits
                partial |= Interval(-63 << bits, 64 * trace.highest)
            elif name == "recall":
                total = trust * (last + -prediction)
            shift = sum_frac - format.frac_bits
            if shift < 0:
                total, partial, shift = total << -shift, partial << -shift, 0
            fitted.append(self.result(f"input {name}", total, partial, shift))
        return fitted

    def trust(self, doubt: Interval, trace: Interval) -> tuple[list[Interval], int]:
        """Recency and -4 doubt: their sum at no doubt, and without a trace. Both are monotone."""
        nothing = np.zeros(2, np.int64)
        recency, frac = _trust(self.rule, nothing, np.array(trace.ends))
        doubted, _ = _trust(self.rule, np.array(doubt.ends), nothing)
        return [Interval.hull(recency), Interval.hull(doubted)], frac

    def layer(self, layer: IntegerLayer, names: list[str], seen: IntArray) -> list[Interval]:
        """Run a layer on the ends of its inputs, (2, I, K)."""
        weight, bias, shift = layer.aligned
        # Exact: IntegerLayer allows no sums of magnitude 2**31 or more.
        products = (weight * seen[:, None]).reshape(2, len(names), -1)
        low, high = products.min(0), products.max(0)  # a negative weight swaps the ends
        total = np.stack([low.sum(1) + bias, high.sum(1) + bias], 1)
        partial = np.stack(
            [
                np.minimum(low, 0).sum(1) + np.minimum(bias, 0),
                np.maximum(high, 0).sum(1) + np.maximum(bias, 0),
            ],
            1,
        )
        rows = zip(names, total.tolist(), partial.tolist(), shift.tolist(), strict=True)
        return [self.result(name, Interval(*t), Interval(*p), s) for name, t, p, s in rows]

    def residual(self, name: str, x: Interval, change: Interval) -> None:
        self.result(name, x + change, _partial_sums([x, change]), 0)

    def gated(self, name: str, x: Interval, candidate: Interval, gate: Interval) -> None:
        rule, shift = self.rule, self.rule.gate_format.frac_bits
        total = gate * (candidate + -x)
        partial = _partial_sums([gate * candidate, gate * -x])
        below = ZERO  # random bits, instead of rounding
        rounding = rule.rounding
        if rule.dither:
            below = Interval(0, ((1 << rule.dither) - 1) << (shift - rule.dither))
            rounding = Rounding.TRN
        total, partial = total + below, partial + below
        partial = self.checked(name, partial + _rounding_terms(shift, rounding))
        # x + z (c - x), rounded, grows with x as it does with c: as z is below 1, what one code of
        # x takes from the change is less than one code. In z it is monotone either way. So its
        # extremes are at the corners.
        low, high = (
            [x_end + _round(z * (c_end - x_end) + noise, shift, rounding) for z in gate.ends]
            for x_end, c_end, noise in zip(x.ends, candidate.ends, below.ends, strict=True)
        )
        moved = Interval(min(low), max(high))
        self.proof.results[name] = Result(total, partial, moved, moved)

    def result(self, name: str, total: Interval, partial: Interval, shift: int) -> Interval:
        """Round and fit a sum, and return what is stored."""
        rule = self.rule
        partial = self.checked(name, partial + _rounding_terms(shift, rule.rounding))
        rounded = Interval(*(_round(end, shift, rule.rounding) for end in total.ends))
        limit = self.limits[name]
        if rule.overflow is Overflow.WRAP and not limit.holds(rounded):
            reach, most = _excess(rounded, limit)
            raise InputError(
                f"{name} can reach {reach}, beyond {_formats(rule)[name]}'s {most}: "
                "choose overflow SAT or a wider format"
            )
        self.proof.results[name] = Result(total, partial, rounded, limit.clip(rounded))
        return self.proof.results[name].fitted

    def checked(self, name: str, partial: Interval) -> Interval:
        """Return the partial sums, which the golden model's integers must hold."""
        _check_accumulator(name, partial, PRODUCT_BITS)
        return partial


@dataclass(frozen=True, eq=False)
class _Monitored(LayeredRule):
    """A rule whose golden model compares what it computes with a proof."""

    watched: Ranges | None = None

    def step(
        self,
        state: IntArray,
        inputs: Mapping[str, IntArray],
        noise: IntArray | None = None,
        watch: Watch | None = None,
    ) -> IntArray:
        """See `IntegerRule`."""
        assert self.watched is not None
        return super().step(state, inputs, noise, compare_with(self.graph, self.watched))


def _trust(rule: LayeredRule, doubt: IntArray, trace: IntArray) -> tuple[IntArray, int]:
    """Code of recency(trace) - 4 doubt, not yet clipped, and its fraction bits."""
    bits = rule.trace_format.frac_bits
    fast = np.maximum(8 * trace - (7 << bits), 0)
    fastest = np.maximum(64 * trace - (63 << bits), 0)
    doubt_frac = rule.state_formats[rule.config.doubt].frac_bits
    frac = max(bits, doubt_frac)
    recency = (trace + fast + 2 * fastest) << (frac - bits)
    return recency - (4 * doubt << (frac - doubt_frac)), frac


def _input_names(rule: LayeredRule) -> list[str]:
    return [f"input {name}" for name in rule.config.inputs]


def _hidden_names(rule: LayeredRule) -> list[str]:
    return [f"hidden neuron h{i}" for i in range(rule.config.hidden)]


def _update_names(rule: LayeredRule) -> list[str]:
    kinds = ("residual",) if rule.config.kind == "residual" else ("candidate", "gate")
    return [f"{kind} x{i}" for kind in kinds for i in range(rule.config.channels)]


def _learned_names(rule: LayeredRule) -> list[str]:
    return [f"channel x{i}" for i in range(rule.config.channels)]


def _formats(rule: LayeredRule) -> dict[str, QFormat]:
    """Format of each result."""
    names = _input_names(rule) + _hidden_names(rule) + _update_names(rule) + _learned_names(rule)
    formats = (*rule.input_formats, *rule.perceive.outputs, *rule.update.outputs)
    return dict(zip(names, formats + rule.state_formats, strict=True))


def _limits(rule: LayeredRule) -> dict[str, Interval]:
    """Codes that each result can have in its format."""
    # A gated update is not fitted: it lies between x and the candidate.
    plain = _learned_names(rule) if rule.config.kind == "gated" else ()
    return {
        name: Interval.of(format, Overflow.SAT if name in plain else rule.overflow)
        for name, format in _formats(rule).items()
    }


def _channel_limits(rule: LayeredRule) -> dict[str, Interval]:
    formats = zip(rule.config.channel_names, rule.channel_formats, strict=True)
    return {name: Interval.of(format) for name, format in formats}


def _register_after(rule: LayeredRule, box: Mapping[str, Interval]) -> dict[str, Interval]:
    """Ranges of the input register after any step from `box`."""
    newest = rule.trace_format.highest
    aged = Interval(*(max(age - 1, 0) for age in box["trace"].ends))
    return {
        "sample": box["sample"] | Interval.of(rule.sample_format),
        "trace": aged | Interval(newest, newest),
    }


def _after(rule: LayeredRule, proof: RangeProof) -> dict[str, Interval]:
    """Ranges of all channels after a step. A cell that does not fire stays where it was."""
    learned = rule.config.channel_names[: rule.config.channels]
    after = {name: proof.results[f"channel {name}"].fitted for name in learned}
    return after | _register_after(rule, proof.channels)


def _taps(seen: Sequence[Interval], border: str) -> IntArray:
    """Ends of what a cell perceives, (2, I, 9): of each neighbour the same, or the border's 0."""
    taps = np.repeat(_array(seen)[..., None], 9, axis=2)
    if border == "zero":
        around = np.arange(9) != 4
        taps[0, :, around] = np.minimum(taps[0, :, around], 0)
        taps[1, :, around] = np.maximum(taps[1, :, around], 0)
    return taps


def _array(intervals: Sequence[Interval]) -> IntArray:
    """Lowest and highest codes, (2, I)."""
    return np.array([interval.ends for interval in intervals], np.int64).T


def _sum(summands: Iterable[Interval]) -> Interval:
    return sum(summands, start=ZERO)


def _partial_sums(summands: Iterable[Interval]) -> Interval:
    """All sums of some of the summands."""
    return _sum(summand | ZERO for summand in summands)


def _rounding_terms(shift: int, rounding: Rounding) -> Interval:
    """What may be added before a shift that drops bits, so that it rounds."""
    match rounding:
        case Rounding.TRN:
            return ZERO
        case Rounding.TRN_ZERO:  # to negative sums
            return Interval(0, (1 << shift) - 1)
        case _:
            return Interval(0, (1 << shift) >> 1 if shift else 0)


def _round(code: int, shift: int, rounding: Rounding) -> int:
    return int(shift_right(np.array(code, np.int64), shift, rounding))


def _excess(found: Interval, limit: Interval) -> tuple[int, int]:
    """The end of `found` that lies beyond `limit`, the highest first, and the limit there."""
    if found.highest > limit.highest:
        return found.highest, limit.highest
    return found.lowest, limit.lowest


def _check_accumulators(rule: LayeredRule, proof: RangeProof, bits: int | None) -> None:
    layers = {*_hidden_names(rule), *_update_names(rule)}
    for name, result in proof.results.items():
        default = LAYER_BITS if name in layers else PRODUCT_BITS
        _check_accumulator(name, result.partial, bits or default)


def _check_accumulator(name: str, partial: Interval, bits: int) -> None:
    held = Interval(-1 << (bits - 1), (1 << (bits - 1)) - 1)
    if not held.holds(partial):
        reach, most = _excess(partial, held)
        raise InputError(
            f"accumulator of {name} can reach {reach}, beyond {bits} bits' {most}: "
            "quantize with fewer bits"
        )


def _check_holds(what: str, held: Interval, found: Interval) -> None:
    if not held.holds(found):
        raise InputError(
            f"range proof is wrong: {what} is {held}, which does not hold {found}: prove it again"
        )


def _unpack(ends: Any) -> Interval:
    lowest, highest = ends
    if type(lowest) is not int or type(highest) is not int:
        raise TypeError(f"range {ends} is not of integers")
    return Interval(lowest, highest)
