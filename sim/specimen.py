"""A small rule that uses all of the hardware, to plant faults in."""

from dataclasses import replace

import numpy as np

from scotopia.graph.build import Builder
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Event, Initial
from scotopia.quantize.integer_rule import GraphRule

X0, X1, AGE = QFormat(1, 5), QFormat(1, 4), QFormat(0, 3, signed=False)
BIT, SHARE = QFormat(1, 0, signed=False), QFormat(0, 4, signed=False)


def specimen(seed: int = 13) -> GraphRule:
    """Return a rule of random weights, of every operation, two borders, and all overflows.

    It computes nothing of use, but by this seed its states move through most of their range, and
    saturate at one end or the other.
    """
    rng, build = np.random.default_rng(seed), Builder()
    x0, x1, age = state = build.channels({"x0": X0, "x1": X1, "age": AGE})
    sample, valid = build.inputs({"sample": X0, "valid": BIT})
    fires, dither = build.random(4) < 0.75, build.random(3)

    def weights(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return rng.integers(-7, 8, shape) / 16

    last = build.where(valid, sample, x0)
    older = build.where(valid, 0.875, (age - 0.125).maximum(0))
    flicker = (last - x0).fit(QFormat(2, 4), Rounding.TRN_ZERO)
    trust = (older - x1).fit(SHARE, Rounding.RND_CONV)
    recall = (trust * (last - x1)).fit(QFormat(1, 4), Rounding.RND_INF, Overflow.SAT_SYM)
    seen = build.concatenate([state, flicker, trust, recall])
    # A bit is added in another way than longer words.
    formats = [QFormat(1, 4, signed=False), QFormat(0, 1, signed=False), QFormat(2, 3)]
    hidden = build.linear(seen, weights(3, 6, 9), weights(3), "replicate").fit(formats)
    around = build.window(x1, largest=False, border="wrap").minimum(flicker)
    mixed = build.concatenate([hidden, around])
    wrapped = (hidden[2] + around).fit(X1, Rounding.RND_ZERO, Overflow.WRAP)
    update = build.linear(mixed, 2 * weights(2, 4, 1), weights(2))
    candidate = update[0].fit(X0)
    gate = (update[1] * 0.5 + 0.5).fit(SHARE)
    way = (gate * (candidate - x0) + dither * 2.0**-5).fit(QFormat(2, 5), Rounding.TRN)
    after = {
        "x0": build.where(fires, x0 + way, x0).fit(X0),
        "x1": build.where(fires, build.where(candidate < around, wrapped, recall).fit(X1), x1),
        "age": older.fit(AGE),
    }
    # The cells in the middle start from what is written into them.
    codes = [rng.integers(format.lowest, format.highest + 1, (2, 2)) for format in (X0, X1, AGE)]
    units = [2.0**-format.frac_bits for format in (X0, X1, AGE)]
    none = Initial.zeros(3)
    initial = replace(none, patch=np.multiply(codes, np.reshape(units, (3, 1, 1))))
    return GraphRule(build.graph(after), 2, (Event("sample", "valid"),), initial)
