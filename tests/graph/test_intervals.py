from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval, check, derive, prove
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.sim.random_graphs import any_graph

UNIT = QFormat(0, 8, signed=False)


@pytest.mark.parametrize("seed", range(40))
def test_no_word_leaves_its_interval(seed: int, moment: Any) -> None:
    graph = any_graph(seed)
    ranges = derive(graph)

    def compare(index: int, codes: np.ndarray) -> None:
        for word, found in zip(graph.words(index), codes, strict=True):
            assert ranges.words[word].holds(Interval.hull(found.ravel())), graph.name(word)

    for again in range(3):
        now = moment(graph, 1000 * again + seed)
        golden.step(graph, now.state, now.inputs, now.noise, compare)


def gated(rounding: Rounding, dither: int = 0) -> StepGraph:
    """x moves a share of the way to what arrives."""
    build = Builder()
    x = build.channels({"x": QFormat(1, 7)})
    c, share = build.inputs({"c": QFormat(1, 7), "share": UNIT})
    way = share * (c - x)
    if dither:
        way, rounding = way + build.random(dither) * 2.0**-7, Rounding.TRN
    return build.graph({"x": x + way.fit(QFormat(2, 7), rounding)})


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("dither", [0, 3])
def test_a_share_of_the_way_stays_between_its_ends(rounding: Rounding, dither: int) -> None:
    ranges = prove(gated(rounding, dither))
    assert Interval(-128, 127).holds(ranges.channels["x"])
    # Each next state of each state, input and random number, one by one.
    graph = gated(rounding, dither)
    x, c, share = np.meshgrid(*[np.arange(-128, 128, 15)] * 2, np.arange(256), indexing="ij")
    for draw in range(1 << dither):
        bits = [draw >> bit & 1 for bit in reversed(range(dither))]
        noise = np.broadcast_to(np.array(bits)[:, None, None], (dither, *x.reshape(18, -1).shape))
        state, to, much = (values.reshape(18, -1) for values in (x, c, share))
        planes = noise if dither else None
        after = golden.step(graph, state[None], {"c": to, "share": much}, planes)[0]
        assert (np.minimum(state, to) <= after).all() and (after <= np.maximum(state, to)).all()


def counter(overflow: Overflow) -> StepGraph:
    build = Builder()
    n = build.channels({"n": UNIT})
    return build.graph({"n": (n + 2.0**-8).fit(UNIT, Rounding.TRN, overflow)})


def test_a_state_that_saturates_is_closed() -> None:
    assert prove(counter(Overflow.SAT)).channels["n"] == Interval(0, 255)


def test_a_state_that_wraps_is_refused() -> None:
    with pytest.raises(InputError, match=r"can reach 256, beyond .* choose overflow SAT"):
        prove(counter(Overflow.WRAP))


def test_a_state_that_nothing_holds_is_refused() -> None:
    build = Builder()
    n = build.channels({"n": UNIT})
    graph = build.graph({"n": n + 2.0**-8})
    with pytest.raises(InputError, match=r"channel n can reach 256, beyond UQ0\.8's 255: let the"):
        prove(graph)


def test_the_proof_starts_from_the_initial_state() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 7)})
    graph = build.graph({"x": x})
    assert prove(graph).channels["x"] == Interval(0, 0)
    assert prove(graph, {"x": Interval(3, 5)}).channels["x"] == Interval(3, 5)


def test_a_wrong_invariant_is_refused() -> None:
    graph = counter(Overflow.SAT)
    check(graph, {"n": Interval(0, 255)})
    with pytest.raises(InputError, match=r"channel n is 0\.\.9, which does not hold 1\.\.10"):
        check(graph, {"n": Interval(0, 9)})
    with pytest.raises(InputError, match=r"which does not hold 0\.\.0"):
        check(graph, {"n": Interval(1, 255)})
    with pytest.raises(InputError, match="other channels"):
        check(graph, {"m": Interval(0, 255)})


def test_an_accumulator_that_is_too_wide_is_refused() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 20)})
    total = build.linear(x, np.full((1, 1, 9), 1 + 2.0**-14), [0.0])
    graph = build.graph({"x": total.fit(QFormat(1, 20))})
    with pytest.raises(InputError, match=r"accumulator of linear 1\.0 can reach .* 32 bits"):
        prove(graph, {"x": Interval(0, 2**20)})
