"""From the integer rule to the array's program.

Weights become signed digits: a term is the operand, shifted by where it is added and with a sign.
A word is made the operand once, moved to each neighbour in turn, and added to all sums that want
it there. Each sum starts as a constant (bias, half a unit for rounding, and for a signed result
the offset that makes it unsigned), has just as many bits as its terms so far can need, and ends in
its result's format.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Overflow, QFormat, Rounding, required_bits
from scotopia.quantize.layered_rule import FIRE_BITS, IntegerLayer, LayeredRule, fire_threshold

from .program import LATENCY, SHORTEST, Addend, Carry, Flag, Instruction, Program, Shift, Word

#: Sizes of a cell's memory that are tried, in planes.
PLANES = (64, 128, 256, 512, 1024, 2048)

#: From this size on, rather compute the neurons in several passes than take a larger memory: a
#: block RAM of 18 kbit has 512 words of 36 bits at most.
DEEP = 512

#: Roundings that add the same to every sum. The others look at it: at its sign, or whether it is
#: odd.
_EARLY = (Rounding.TRN, Rounding.RND, Rounding.RND_MIN_INF)

#: Most planes that one instruction can write.
LONGEST = 63

#: The nine neighbours, in reading order, on four ways of one move each.
_WAYS: tuple[tuple[tuple[int, Shift | None], ...], ...] = (
    ((4, None), (1, Shift.NORTH), (2, Shift.EAST)),
    ((4, None), (5, Shift.EAST), (8, Shift.SOUTH)),
    ((4, None), (7, Shift.SOUTH), (6, Shift.WEST)),
    ((4, None), (3, Shift.WEST), (0, Shift.NORTH)),
)


def compile_rule(rule: LayeredRule, planes: int | None = None) -> Program:
    """Compile a rule, for a memory of so many planes or for the smallest that serves.

    Raises
    ------
    InputError
        If the rule does not fit.
    """
    if planes is not None and planes not in PLANES:
        raise InputError(f"planes {planes} is not supported: choose one of {PLANES}")
    largest = planes or PLANES[-1]
    for size in [planes] if planes else PLANES:
        for passes in (1,) if not planes and size < DEEP else (1, 2, 3, 4, rule.config.hidden):
            if passes > rule.config.hidden:
                continue
            try:
                return _Compiler(rule, size, passes).compile()
            except _OutOfPlanesError:
                pass
    raise InputError(
        f"the rule does not fit a memory of {largest} planes: choose more planes, or a rule of "
        "fewer channels, neurons or bits"
    )


def signed_digits(number: int) -> Iterator[tuple[int, int]]:
    """Yield (position, +1 or -1) of the canonical signed-digit form: no two digits adjacent."""
    position = 0
    while number:
        if number & 1:
            digit = 2 - (number & 3)  # 1 if the two low bits are 01, -1 if they are 11
            yield position, digit
            number -= digit
        number >>= 1
        position += 1


class _OutOfPlanesError(Exception):
    """The cells' memory is full."""


@dataclass(frozen=True)
class _Term:
    """A summand: +/- 2**position * word, or * 1, in the cells where plane `gate` is 1."""

    position: int
    sign: int
    word: Word | None = None
    gate: int | None = None

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest that it can be."""
        low, high = _range(self.word) if self.word else (0, 1)
        if self.sign < 0:
            low, high = -high, -low
        return min(0, low) << self.position, max(0, high) << self.position


@dataclass
class _Sum:
    """A sum in the making, in two's complement.

    Attributes
    ----------
    plane
        Its lowest.
    reserved, bits
        How many planes it owns, and how many of them hold it now.
    low, high
        What it can be.
    """

    plane: int
    reserved: int
    bits: int
    low: int
    high: int


class _Compiler:
    def __init__(self, rule: LayeredRule, planes: int, passes: int) -> None:
        self.rule, self.passes = rule, passes
        self.free = [True] * planes
        self.program = Program(rule, planes, operand_bits(rule))
        self.formats: dict[str, QFormat] = {}
        self.loaded: Word | None = None
        self.gate: int | None = None  # plane that the flag shows; None: it is set
        self.clock = 0
        self.written: dict[int, int] = {}  # when the result for a plane was read

    def compile(self) -> Program:
        """Compile all routines, those of fixed length first."""
        rule, program = self.rule, self.program
        for name, format in zip(rule.channel_names, rule.channel_formats, strict=True):
            program.words[name] = self._word(format)
        program.words["valid"] = self._word(QFormat(1, 0, signed=False))
        program.words["arrival"] = self._word(rule.sample_format)
        self._clear()
        self._forget()
        self._read()
        self._move()
        self._sense()
        self._step()
        return program

    def _clear(self) -> None:
        self._begin("clear")
        for start in range(0, self.program.planes, 32):
            self._emit(Instruction(32, write=start, write_bits=32))
        self._end()

    def _forget(self) -> None:
        self._begin("forget")
        self._emit(Instruction(1, write=self.program.words["valid"].plane, write_bits=1))
        self._end()

    def _read(self) -> None:
        for index, name in enumerate(self.rule.channel_names):
            self.loaded = None
            if index == 0:
                self._begin("read")
            self._load(self.program.words[name])
            self._end()

    def _move(self) -> None:
        self._begin("move")
        self._emit(Instruction(self.program.operand_bits, shift=Shift.SOUTH))
        self._end()

    def _sense(self) -> None:
        self._begin("sense")
        arrival, valid = self.program.words["arrival"], self.program.words["valid"]
        self._emit(Instruction(1, flag=Flag.SENSE))
        self._emit(Instruction(1, addend=Addend.FLAG, subtract=True))  # carry = not 0 and flag
        self._select(arrival.plane, arrival.bits, Addend.SAMPLE)
        self._select(valid.plane, 1, Addend.ONE)
        self._end()

    def _step(self) -> None:
        config, words = self.rule.config, self.program.words
        self._begin("step")
        fires, dither = self._noise()
        self._set_flag()
        inputs = self._inputs()
        hidden = self._perceive([words[n] for n in config.channel_names[: config.channels]], inputs)
        for word in set(inputs.values()) - set(words.values()):
            self._release(word)
        for channel in range(config.channels):
            self._comment(config.channel_names[channel])
            target = words[config.channel_names[channel]]
            kept = self._copy(target) if fires is not None else None
            if config.kind == "residual":
                self._residual_update(channel, hidden, target)
            else:
                self._gated_update(channel, hidden, target, dither)
            if kept is not None and fires is not None:
                self._set_flag()
                self._load(kept)
                self._carry_from(fires, inverted=True)
                self._emit(
                    Instruction(
                        self.program.operand_bits,
                        read=target.plane,
                        read_bits=target.bits,
                        write=target.plane,
                        write_bits=target.bits,
                        addend=Addend.WORD,
                        select=True,
                        carry=Carry.HOLD,
                        shift=Shift.ROTATE,
                    )
                )
                self._release(kept)
        self._end()

    # Noise, sample and inputs.

    def _noise(self) -> tuple[int | None, Word | None]:
        """Draw this step's random bits: the plane of the cells that fire, and the dither."""
        rule, fires = self.rule, None
        if rule.config.fire_rate < 1:
            draw = self._draw(FIRE_BITS)
            fires = self._allocate(1)
            # Below the threshold is where subtracting it borrows.
            threshold = fire_threshold(rule.config)
            self._add_constant(draw, threshold, Carry.START, subtract=True, bits=FIRE_BITS)
            self._emit(
                Instruction(
                    1, write=fires, write_bits=1, addend=Addend.ONE, select=True, carry=Carry.HOLD
                )
            )
            self._release(draw)
        return fires, self._draw(rule.dither) if rule.dither else None

    def _draw(self, bits: int) -> Word:
        word = Word(self._allocate(bits), bits, signed=False)
        for plane in reversed(range(word.plane, word.plane + bits)):
            self._emit(Instruction(1, flag=Flag.NOISE))
            self._emit(Instruction(1, write=plane, write_bits=1, addend=Addend.FLAG))
        return word

    def _inputs(self) -> dict[str, Word]:
        """Take the sample that arrived, and compute what is perceived beside the state."""
        rule, config, words = self.rule, self.rule.config, self.program.words
        sample, trace, valid = words["sample"], words["trace"], words["valid"].plane
        formats = dict(zip(config.inputs, rule.input_formats, strict=True))
        inputs = {"trace": trace}
        if rule.overflow is not Overflow.SAT_SYM:  # which sees its lowest code as the one above
            inputs["sample"] = sample
        sample_frac = rule.sample_format.frac_bits

        self._comment("registers")
        if "fresh" in formats:
            fresh = self._allocate(1)
            self._carry_from(valid)
            self._emit(  # which a full trace hands on
                Instruction(
                    trace.bits, read=trace.plane, read_bits=trace.bits, carry=Carry.CONTINUE
                )
            )
            self._emit(
                Instruction(
                    1, read=valid, read_bits=1, write=fresh, write_bits=1, carry=Carry.CONTINUE
                )
            )
            inputs["fresh"] = self._total(
                [_Term(0, 1, None, fresh)], -formats["fresh"].frac_bits, formats["fresh"]
            )
            self._free(fresh, 1)
        if "flicker" in formats:
            change = self._allocate(1)
            self._flag_or(trace)  # the trace is 0 until a sample was seen
            self.gate = -1
            self._emit(Instruction(1, read=valid, read_bits=1, addend=Addend.FLAG))
            self._emit(
                Instruction(
                    1, write=change, write_bits=1, addend=Addend.ONE, select=True, carry=Carry.HOLD
                )
            )
            inputs["flicker"] = self._total(
                [_Term(0, 1, words["arrival"], change), _Term(0, -1, sample, change)],
                sample_frac - formats["flicker"].frac_bits,
                formats["flicker"],
            )
            self._free(change, 1)
        self._set_flag()
        self._load(words["arrival"])
        self._carry_from(valid)
        self._emit(
            Instruction(
                self.program.operand_bits,
                read=sample.plane,
                read_bits=sample.bits,
                write=sample.plane,
                write_bits=sample.bits,
                addend=Addend.WORD,
                select=True,
                carry=Carry.HOLD,
                shift=Shift.ROTATE,
            )
        )
        self._flag_or(trace)
        self.gate = -1
        self._emit(  # minus 1 where it is not 0: plus all ones
            Instruction(
                trace.bits,
                read=trace.plane,
                read_bits=trace.bits,
                write=trace.plane,
                write_bits=trace.bits,
                addend=Addend.FLAG,
            )
        )
        self._carry_from(valid)
        self._select(trace.plane, trace.bits, Addend.ONE)

        surprise = [_Term(0, 1, sample), _Term(0, -1, words[config.channel_names[0]])]
        for name, format in formats.items():
            if name in inputs:
                continue
            self._comment(name)
            terms, frac = surprise, sample_frac
            if name == "sample":
                terms = [_Term(0, 1, sample)]
            elif name == "valid":
                terms, frac = [_Term(0, 1, None, valid)], 0
            elif name == "innovation":
                terms = [replace(term, gate=valid) for term in surprise]
            elif name == "trust":
                terms, frac = self._trust(trace)
            elif name == "recall":
                difference = self._sum(surprise)
                assert difference is not None
                trust = inputs["trust"]
                terms = [_Term(bit, 1, difference, trust.plane + bit) for bit in range(trust.bits)]
                frac = sample_frac + rule.trust_format.frac_bits
            inputs[name] = self._total(terms, frac - format.frac_bits, format)
            for word in {t.word for t in terms if t.word} - {*words.values(), *inputs.values()}:
                self._release(word)
        return inputs

    def _trust(self, trace: Word) -> tuple[list[_Term], int]:
        """Terms of recency(trace) - 4 doubt, and their fraction bits."""
        rule, bits = self.rule, self.rule.trace_format.frac_bits
        doubt_frac = rule.state_formats[rule.config.doubt].frac_bits
        frac = max(bits, doubt_frac)
        doubt = self.program.words[rule.channel_names[rule.config.doubt]]
        terms = [_Term(frac - bits, 1, trace), _Term(2 + frac - doubt_frac, -1, doubt)]
        for scale, weight in ((3, 0), (6, 1)):
            # Not below zero: 2**scale * trace - (2**scale - 1).
            fast = self._total(
                [_Term(scale, 1, trace)],
                0,
                QFormat(bits, 0, signed=False),
                constant=-((1 << scale) - 1) << bits,
                overflow=Overflow.SAT,
            )
            terms.append(_Term(frac - bits + weight, 1, fast))
        return terms, frac

    # The two layers.

    def _perceive(self, state: list[Word], inputs: dict[str, Word]) -> list[Word]:
        """Compute the hidden layer, in as many passes as there is memory for."""
        layer = self.rule.perceive
        words = state + [inputs[name] for name in self.rule.config.inputs]
        hidden: list[Word] = []
        places = None
        if self.passes > 1:  # in one pass, results lie where their sums were
            places = [self._word(format) for format in layer.outputs]
        for outputs in np.array_split(np.arange(len(layer.outputs)), self.passes):
            hidden += self._layer(layer, [int(o) for o in outputs], words, _WAYS, places)
        return hidden

    def _layer(
        self,
        layer: IntegerLayer,
        outputs: Sequence[int],
        words: Sequence[Word],
        ways: Sequence[Sequence[tuple[int, Shift | None]]],
        places: Sequence[Word] | None = None,
    ) -> list[Word]:
        """Compute some outputs of a layer, in their places or where their sums are."""
        weight, bias, shift = layer.aligned
        plans = {
            output: [[list(signed_digits(int(code))) for code in taps] for taps in weight[output]]
            for output in outputs
        }
        sums = {}
        for output, plan in plans.items():
            terms = [
                _Term(position, sign, word)
                for word, taps in zip(words, plan, strict=True)
                for digits in taps
                for position, sign in digits
            ]
            constant = int(bias[output])
            sums[output] = self._start(terms, constant, int(shift[output]), layer.outputs[output])
        for index, word in enumerate(words):
            wanted = {
                tap for plan in plans.values() for tap, digits in enumerate(plan[index]) if digits
            }
            done: set[int] = set()
            for way in ways:
                if not {tap for tap, _ in way} & (wanted - done):
                    continue
                for tap, move in way:
                    if move is None:
                        self._load(word)
                    else:
                        self._emit(Instruction(self.program.operand_bits, shift=move))
                        self.loaded = word  # of a neighbour, but it is what is to be added
                    if tap in done:
                        continue
                    done.add(tap)
                    for output, plan in plans.items():
                        # From the highest digit down, so that no bit is read that is on its way.
                        for position, sign in reversed(plan[index][tap]):
                            self._add(sums[output], _Term(position, sign, word))
                self.loaded = None
        return [
            self._finish(
                sums[output],
                int(shift[output]),
                layer.outputs[output],
                places[output] if places else None,
            )
            for output in outputs
        ]

    def _gated_update(
        self, channel: int, hidden: list[Word], target: Word, dither: Word | None
    ) -> None:
        layer, here = self.rule.update, (((0, None),),)
        outputs = (channel, self.rule.config.channels + channel)
        candidate, gate = self._layer(layer, outputs, hidden, here)
        difference = self._sum([_Term(0, 1, candidate), _Term(0, -1, target)])
        self._release(candidate)
        bits, format = self.rule.gate_format.frac_bits, self.rule.state_formats[channel]
        rounding = Rounding.TRN if dither else self.rule.rounding
        terms = [_Term(bit, 1, difference, gate.plane + bit) for bit in range(bits)]
        if dither:
            terms.append(_Term(bits - dither.bits, 1, dither))
        # Between what it was and the candidate: it cannot leave the format.
        wrap = Overflow.WRAP
        if rounding in _EARLY:
            terms.append(_Term(bits, 1, target))
            self._total(terms, bits, format, place=target, rounding=rounding, overflow=wrap)
        else:
            way = self._total(terms, bits, QFormat(format.bits + 1, 0), overflow=wrap)
            terms = [_Term(0, 1, target), _Term(0, 1, way)]
            self._total(terms, 0, format, place=target, overflow=wrap)
            self._release(way)
        self._release(gate)
        self._release(difference)

    def _residual_update(self, channel: int, hidden: list[Word], target: Word) -> None:
        (change,) = self._layer(self.rule.update, (channel,), hidden, (((0, None),),))
        terms = [_Term(0, 1, target), _Term(0, 1, change)]
        self._total(terms, 0, self.rule.state_formats[channel], place=target)
        self._release(change)

    # Sums.

    def _sum(self, terms: list[_Term]) -> Word:
        """Compute a sum, all of it."""
        total = self._start(terms, 0, 0, None)
        for term in terms:
            self._add(total, term)
        self._free(total.plane + total.bits, total.reserved - total.bits)
        return Word(total.plane, total.bits, signed=True)

    def _total(
        self,
        terms: list[_Term],
        shift: int,
        format: QFormat,
        *,
        constant: int = 0,
        place: Word | None = None,
        rounding: Rounding | None = None,
        overflow: Overflow | None = None,
    ) -> Word:
        """Compute a sum / 2**shift, rounded and brought to a format."""
        if shift < 0:
            terms = [replace(term, position=term.position - shift) for term in terms]
            constant, shift = constant << -shift, 0
        total = self._start(terms, constant, shift, format, rounding, overflow)
        for term in terms:
            self._add(total, term)
        return self._finish(total, shift, format, place, rounding, overflow)

    def _start(
        self,
        terms: list[_Term],
        constant: int,
        shift: int,
        format: QFormat | None,
        rounding: Rounding | None = None,
        overflow: Overflow | None = None,
    ) -> _Sum:
        """Begin a sum with its constant, and reserve what its terms will need."""
        rounding = rounding or self.rule.rounding
        half = 1 << shift - 1 if shift else 0
        known, late = constant, 0  # before and after rounding looks at the sum
        if rounding is Rounding.RND:
            known += half
        elif rounding is Rounding.RND_MIN_INF:
            known += max(half - 1, 0)
        elif rounding not in _EARLY:
            late = 2 * half
        offset = _offset(format, shift, overflow or self.rule.overflow)
        if late:  # the same offset, but in `_round`
            late += offset
        else:
            known += offset
        low = known + sum(term.range[0] for term in terms)
        high = known + sum(term.range[1] for term in terms)
        low, high = min(low, known, 0), max(high, known)
        result = shift + (format.bits if format else 0)
        reserved = max(required_bits(low, high + late), result)
        start = max([required_bits(known, known), *(term.position + 1 for term in terms)])
        total = _Sum(self._allocate(reserved), reserved, start, known, known)
        plane = total.plane
        for bit, count in _runs(known, start):
            addend = Addend.ONE if bit else Addend.ZERO
            self._emit(Instruction(count, write=plane, write_bits=count, addend=addend))
            plane += count
        return total

    def _add(self, total: _Sum, term: _Term) -> None:
        """Add a term."""
        part = self.program.operand_bits - 1
        if term.word and term.word.operand_bits > part + 1:
            # Wider than the operand: its lower bits, then the rest.
            lower = Word(term.word.plane, part, signed=False)
            rest = Word(term.word.plane + part, term.word.bits - part, term.word.signed)
            self._add(total, replace(term, word=lower))
            self._add(total, replace(term, word=rest, position=term.position + part))
            return
        low, high = term.range
        total.low, total.high = total.low + low, total.high + high
        before = total.bits
        total.bits = max(total.bits, required_bits(total.low, total.high))
        count = total.bits - term.position
        if term.gate is None:
            self._set_flag()
        else:
            self._flag_from(term.gate)
        if term.word:
            self._load(term.word)
        self._emit(
            Instruction(
                max(count, self.program.operand_bits) if term.word else count,
                read=total.plane + term.position,
                read_bits=before - term.position,
                signed=True,
                write=total.plane + term.position,
                write_bits=count,
                addend=Addend.WORD if term.word else Addend.UNIT,
                subtract=term.sign < 0,
                shift=Shift.ROTATE if term.word else Shift.HOLD,
            )
        )

    def _finish(
        self,
        total: _Sum,
        shift: int,
        format: QFormat,
        place: Word | None = None,
        rounding: Rounding | None = None,
        overflow: Overflow | None = None,
    ) -> Word:
        """Bring a sum to its format: in `place`, or where it is; release what it leaves."""
        rounding, overflow = rounding or self.rule.rounding, overflow or self.rule.overflow
        offset = _offset(format, shift, overflow)
        self._round(total, shift, offset, rounding)
        bits = format.bits
        lowest = total.plane + shift  # of the result, which is unsigned so far
        self._extend(total, shift + bits)
        here = place or Word(lowest, bits, format.signed)
        limit = 1 << shift + bits
        if overflow is Overflow.WRAP or (total.low >= 0 and total.high < limit):
            if place:
                self._emit(
                    Instruction(
                        bits, read=lowest, read_bits=bits, write=place.plane, write_bits=bits
                    )
                )
        elif total.low >= 0 or total.high < limit:
            # On one side alone: any bit above, or the sign.
            above = total.bits - shift - bits if total.low >= 0 else 1
            self._carry_or(total.plane + total.bits - above, above)
            self._select(lowest, bits, Addend.ONE if total.low >= 0 else Addend.ZERO, here.plane)
        else:
            sign = total.plane + total.bits - 1
            self._emit(Instruction(1, read=sign, read_bits=1, addend=Addend.ONE, flag=Flag.TAKE))
            self.gate = -1
            self._carry_or(lowest + bits, total.bits - shift - bits)
            self._select(lowest, bits, Addend.FLAG, here.plane)
        if offset:
            if overflow is Overflow.SAT_SYM:
                # The carry becomes 1, and stays so as long as bits are 0.
                self._emit(Instruction(1, addend=Addend.ONE, subtract=True))
                self._emit(
                    Instruction(
                        bits, read=here.plane, read_bits=bits, subtract=True, carry=Carry.CONTINUE
                    )
                )
                self._select(here.plane, 1, Addend.ONE)
            top = here.plane + bits - 1
            self._emit(
                Instruction(1, read=top, read_bits=1, write=top, write_bits=1, addend=Addend.ONE)
            )
        kept = range(0) if place else range(lowest, lowest + bits)
        for plane in range(total.plane, total.plane + total.reserved):
            self.free[plane] = plane not in kept
        return here

    def _round(self, total: _Sum, shift: int, offset: int, rounding: Rounding) -> None:
        """Do that part of rounding which depends on the sum, and add the offset then."""
        if rounding in _EARLY or shift == 0:
            return
        half = 1 << shift - 1
        # Now, for the carry has to stay between here and the addition.
        self._extend(total, required_bits(total.low, total.high + offset + 2 * half))
        sign = total.plane + total.bits - 1
        if rounding is Rounding.TRN_ZERO:
            # Nearly a unit more where it is negative; one bit, repeated, is that number.
            self._flag_from(sign)
            high = total.high + 2 * half - 1
            self._grow(total, Addend.FLAG, shift, total.low, high)
            if offset:
                self._offset(total, offset, Carry.START)
            return
        plane, inverted = {
            Rounding.RND_ZERO: (sign, False),
            Rounding.RND_INF: (sign, True),
            Rounding.RND_CONV: (total.plane + shift, False),
        }[rounding]
        if plane >= total.plane + total.bits:
            plane = sign
        self._carry_from(plane, inverted=inverted)
        self._offset(total, offset + half - 1, Carry.CONTINUE)

    def _offset(self, total: _Sum, constant: int, carry: Carry) -> None:
        """Add a constant, and the carry if it continues."""
        low, high = total.low + constant, total.high + constant + (carry is Carry.CONTINUE)
        total.low, total.high = low, high
        # First, since what is added lies in several instructions, and the sign would be gone.
        self._extend(total, required_bits(low, high))
        done = 0
        for bit, count in _runs(constant, total.bits):
            self._emit(
                Instruction(
                    count,
                    read=total.plane + done,
                    read_bits=count,
                    write=total.plane + done,
                    write_bits=count,
                    addend=Addend.ONE if bit else Addend.ZERO,
                    carry=carry if done == 0 else Carry.CONTINUE,
                )
            )
            done += count

    def _grow(self, total: _Sum, addend: Addend, count: int, low: int, high: int) -> None:
        """Add `addend` for `count` bits, then zeros, to a sum that is `low` to `high` then."""
        total.low, total.high = low, high
        self._extend(total, required_bits(low, high))
        for start, length, this in (
            (0, count, addend),
            (count, total.bits - count, Addend.ZERO),
        ):
            if length > 0:
                self._emit(
                    Instruction(
                        length,
                        read=total.plane + start,
                        read_bits=length,
                        write=total.plane + start,
                        write_bits=length,
                        addend=this,
                        carry=Carry.CONTINUE if start else Carry.START,
                    )
                )

    def _extend(self, total: _Sum, bits: int) -> None:
        """Repeat a sum's sign, so that it has this many bits at least."""
        if total.bits < bits:
            self._emit(
                Instruction(
                    bits - total.bits,
                    read=total.plane + total.bits - 1,
                    read_bits=1,
                    signed=True,
                    write=total.plane + total.bits,
                    write_bits=bits - total.bits,
                )
            )
            total.bits = bits

    def _add_constant(
        self, word: Word, constant: int, carry: Carry, *, subtract: bool, bits: int
    ) -> None:
        """Leave the carry of a word plus or minus a constant; write nothing."""
        done = 0
        for bit, count in _runs(constant, bits):
            self._emit(
                Instruction(
                    count,
                    read=word.plane + done,
                    read_bits=count,
                    addend=Addend.ONE if bit else Addend.ZERO,
                    subtract=subtract,
                    carry=carry if done == 0 else Carry.CONTINUE,
                )
            )
            done += count

    # Single bits.

    def _set_flag(self) -> None:
        if self.gate is not None:
            self._emit(Instruction(1, addend=Addend.ONE, flag=Flag.TAKE))
        self.gate = None

    def _flag_from(self, plane: int) -> None:
        if self.gate != plane:
            self._emit(Instruction(1, read=plane, read_bits=1, flag=Flag.TAKE))
        self.gate = plane

    def _flag_or(self, word: Word) -> None:
        """Set the flag where any bit of the word is 1."""
        self._carry_or(word.plane, word.bits)
        self._emit(Instruction(1, carry=Carry.HOLD, flag=Flag.TAKE))

    def _carry_from(self, plane: int, *, inverted: bool = False) -> None:
        self._emit(Instruction(1, read=plane, read_bits=1, addend=Addend.ONE, subtract=inverted))

    def _carry_or(self, plane: int, bits: int) -> None:
        """Set the carry where any of some bits is 1: that is where adding all ones carries."""
        self._emit(Instruction(bits, read=plane, read_bits=bits, addend=Addend.ONE))

    def _select(self, plane: int, bits: int, addend: Addend, to: int | None = None) -> None:
        """Where the carry is 1, replace bits by the addend; write them there or elsewhere."""
        self._emit(
            Instruction(
                bits,
                read=plane,
                read_bits=bits,
                write=plane if to is None else to,
                write_bits=bits,
                addend=addend,
                select=True,
                carry=Carry.HOLD,
            )
        )

    # Words.

    def _load(self, word: Word) -> None:
        """Make a word the operand."""
        if self.loaded != word:
            self._emit(
                Instruction(
                    self.program.operand_bits,
                    read=word.plane,
                    read_bits=word.bits,
                    signed=word.signed,
                    shift=Shift.LOAD,
                )
            )
        self.loaded = word

    def _copy(self, word: Word) -> Word:
        copy = replace(word, plane=self._allocate(word.bits))
        self._emit(
            Instruction(
                word.bits,
                read=word.plane,
                read_bits=word.bits,
                write=copy.plane,
                write_bits=word.bits,
            )
        )
        return copy

    def _word(self, format: QFormat) -> Word:
        return Word(self._allocate(format.bits), format.bits, format.signed)

    def _allocate(self, bits: int) -> int:
        """Return the lowest of so many free planes in a row."""
        run = 0
        for plane, free in enumerate(self.free):
            run = run + 1 if free else 0
            if run == bits:
                start = plane - bits + 1
                self.free[start : plane + 1] = [False] * bits
                return start
        raise _OutOfPlanesError

    def _free(self, plane: int, bits: int) -> None:
        self.free[plane : plane + bits] = [True] * bits

    def _release(self, word: Word) -> None:
        self._free(word.plane, word.bits)
        if self.loaded == word:
            self.loaded = None

    # Instructions.

    def _begin(self, name: str) -> None:
        self.program.entries[name] = len(self.program.instructions)
        self.clock, self.written = 0, {}
        self.loaded, self.gate = None, -1

    def _end(self) -> None:
        self.program.instructions[-1] = replace(self.program.instructions[-1], end=True)

    def _comment(self, text: str) -> None:
        self.program.comments[len(self.program.instructions)] = text

    def _emit(self, instruction: Instruction) -> None:
        """Add an instruction, as late as its bits need to be there."""
        wait = 0
        for bit in range(min(instruction.read_bits, instruction.count)):
            ready = self.written.get(instruction.read + bit, -LATENCY) + LATENCY
            wait = max(wait, ready - (self.clock + bit))
        if wait:
            # Longer than a routine's end lets it be, never: a pause is an instruction, too.
            self._append(Instruction(max(wait, SHORTEST), carry=Carry.HOLD))
        self._append(instruction)

    def _append(self, instruction: Instruction) -> None:
        for bit in range(instruction.write_bits):
            self.written[instruction.write + bit] = self.clock + bit
        if self.loaded and instruction.shift not in (Shift.HOLD, Shift.ROTATE):
            self.loaded = None
        written = range(instruction.write, instruction.write + instruction.write_bits)
        if self.loaded and self.loaded.plane in written:
            self.loaded = None
        self.clock += instruction.cycles
        self.program.instructions.append(instruction)


def operand_bits(rule: LayeredRule) -> int:
    """Bits of the operand: those of the widest word that comes from a neighbour or is read out.

    Others, if they are wider, are added in parts.
    """
    moved = [*rule.state_formats, *rule.input_formats, *rule.perceive.outputs]
    return max(
        *(format.bits + (not format.signed) for format in moved),
        *(format.bits for format in rule.channel_formats),
    )


def _offset(format: QFormat | None, shift: int, overflow: Overflow) -> int:
    """What makes all of a signed format unsigned, so that it is clipped like an unsigned one."""
    clips = format is not None and format.signed and overflow is not Overflow.WRAP
    return 1 << format.bits - 1 + shift if format is not None and clips else 0


def _range(word: Word) -> tuple[int, int]:
    if word.signed:
        return -(1 << word.bits - 1), (1 << word.bits - 1) - 1
    return 0, (1 << word.bits) - 1


def _runs(number: int, bits: int) -> list[tuple[int, int]]:
    """Bits of a number in two's complement as runs (bit, count), the lowest first."""
    runs: list[tuple[int, int]] = []
    for place in range(bits):
        bit = number >> place & 1
        if runs and runs[-1][0] == bit and runs[-1][1] < LONGEST:
            runs[-1] = (bit, runs[-1][1] + 1)
        else:
            runs.append((bit, 1))
    return runs
