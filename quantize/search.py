"""Fewest bits, or least of another cost, within a loss: widths of single channels and neurons."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.model.rule import Rule

from .formats import Formats, WeightFormats
from .layered_rule import LayeredRule

#: Score of an integer rule, in dB.
Score = Callable[[LayeredRule], float]

#: Cost of formats and of the integer rule in them, above 0, in any unit.
Cost = Callable[[Formats, LayeredRule], float]

#: Makes the integer rule in some formats.
Build = Callable[[Formats], LayeredRule]

#: Share of the loss that is left that one round may take, because losses do not quite add up.
ROUND_SHARE = 0.5

#: What neurons have computed, and gates with them, all of which have one width: no bits of weights
#: or state, but they take time.
RESULTS = "hidden"

#: Widths that go one by one: of a neuron's weights, a candidate's or a gate's, of a channel, and of
#: what a neuron has computed.
FIELDS = ("perceive_weights", "update_weights", "state", RESULTS)

#: Loss below which a width is free, dB: less is noise, and no loss at all would have no price.
FREE = 1e-4


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    formats, rule
        The formats, and the integer rule in them.
    cost, score
        Bits, as `cost_of`, or what else was asked for; dB.
    tried
        Integer rules scored on the way.
    """

    formats: Formats
    rule: LayeredRule
    cost: float
    score: float
    tried: int


def cost_of(formats: Formats, cells: int = 1) -> int:
    """Bits of all weights, and `cells` times those of a cell's learned channels and sample."""
    state = sum(format.bits for format in (*formats.state, formats.sample))
    return formats.weight_bits + cells * state


def search(
    rule: Rule,
    formats: Formats,
    score: Score,
    max_loss: float,
    cells: int = 1,
    on_round: Callable[[Found], None] = lambda found: None,
    *,
    cost: Cost | None = None,
    build: Build | None = None,
) -> Found:
    """Take bits away, cheapest first, while the score falls by no more than `max_loss`.

    In each round every width is tried with a bit less; those that save most for what they lose are
    taken together, while their losses add up to half of what is left.

    Parameters
    ----------
    rule
        Whose weights are rounded.
    formats
        What to start from.
    score
        Of an integer rule, in dB; the same rule must have the same score.
    max_loss
        dB, above 0.
    cells
        Cells of the array that is to be built: their state counts `cells` times, weights once.
    on_round
        Called after each round with what has been found so far.
    cost
        What to lower in place of bits, for instance the clocks of an array's program.
    build
        How to round the rule to formats; by default each weight to the nearest.

    Raises
    ------
    InputError
        If `max_loss` is not above 0.
    """
    if not max_loss > 0:
        raise InputError(f"max_loss {max_loss:g} is not above 0: choose 0.1, for instance")
    make = build or (lambda chosen: chosen.integer_rule(rule))
    price = cost or (lambda chosen, _integer: cost_of(chosen, cells))
    best = make(formats)
    start = score(best)
    found = Found(formats, best, price(formats, best), start, 1)
    tried = 1
    while True:
        left = max_loss - (start - found.score)
        moves = []
        for narrower in _narrower(found.formats, FIELDS if cost else FIELDS[:-1]):
            integer = make(narrower)
            saved = found.cost - price(narrower, integer)
            if saved <= 0:  # what costs nothing wins nothing
                continue
            tried += 1
            loss = found.score - score(integer)
            if loss <= left:
                moves.append((max(loss, FREE) / saved, loss, narrower))
        moves.sort(key=lambda move: move[0])
        # Half of the budget; then, if they lose more together than one by one, half of these.
        taken: list[Formats] = []
        spent = 0.0
        for _, loss, narrower in moves:
            if taken and spent + max(loss, 0) > ROUND_SHARE * left:
                break
            taken.append(narrower)
            spent += max(loss, 0)
        while taken:
            together = _merge(found.formats, taken)
            candidate = make(together)
            reached = score(candidate)
            spent_less = price(together, candidate) < found.cost
            tried += 1
            if start - reached <= max_loss and spent_less:
                break
            taken = taken[: len(taken) // 2]
        if not taken:
            return replace(found, tried=tried)
        found = Found(together, candidate, price(together, candidate), reached, tried)
        on_round(found)


def _narrower(formats: Formats, fields: Sequence[str]) -> Iterator[Formats]:
    """Yield these formats with one width a bit less, where at least two bits are left."""
    for field in fields:
        for i, format in enumerate(getattr(formats, field)):
            if min(f.bits for f in ((format,) if isinstance(format, QFormat) else format)) > 2:
                yield _with(formats, field, i, _coarser(format))
    # A dither is added below the state's last bit, where a gate must have as many.
    if RESULTS in fields and formats.gate.bits > max(2, formats.dither):
        yield replace(formats, gate=_one_bit_less(formats.gate))


def _with(formats: Formats, field: str, i: int, format: WeightFormats) -> Formats:
    chosen = list(getattr(formats, field))
    chosen[i] = format
    widths: dict[str, Any] = {field: tuple(chosen)}
    changed = replace(formats, **widths)
    if field != "state" or i != 0:
        return changed
    assert isinstance(format, QFormat)
    # The sample is what the prediction predicts: they have one format, and an input that shows the
    # sample has it, too.
    names = formats.config.inputs
    inputs = tuple(
        format if name == "sample" else given
        for name, given in zip(names, formats.inputs, strict=True)
    )
    return replace(changed, sample=format, inputs=inputs)


def _merge(formats: Formats, changed: list[Formats]) -> Formats:
    merged = formats
    for other in changed:
        if other.gate != formats.gate:
            merged = replace(merged, gate=other.gate)
        for field in FIELDS:
            before = getattr(formats, field)
            for i, format in enumerate(getattr(other, field)):
                if format != before[i]:
                    merged = _with(merged, field, i, format)
    return merged


def _coarser(format: WeightFormats) -> WeightFormats:
    return tuple(map(_one_bit_less, format)) if isinstance(format, tuple) else _one_bit_less(format)


def _one_bit_less(format: QFormat) -> QFormat:
    return QFormat(format.int_bits, format.frac_bits - 1, format.signed)
