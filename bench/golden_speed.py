"""Speed of the golden model: python bench/golden_speed.py [RULE]

Cell updates a second of an integer rule on 128 x 128 cells: by the compiled engine, on as many
threads as there are cores, each with a clip of its own; by `LayeredRule.step`; and by the same step
with nothing but int64 sums, as one would write it down. All three must give the same codes.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from scotopia.cli.rules import rule_path
from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, shift_right
from scotopia.quantize.engine import Engine, supports
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule

SIDE = 128
FRAMES = 16

#: Repetitions, of which the best counts: others only make a run slower.
REPEATS = 3


def plain_layer(rule: LayeredRule, layer: IntegerLayer, taps: IntArray) -> IntArray:
    """One layer in int64; (I, K, N) to (O, N)."""
    weight, bias, shift = layer.aligned
    total = np.einsum("oik,ikn->on", weight, taps) + bias[:, None]
    rounded = shift_right(total, shift[:, None], rule.rounding)
    return np.stack(
        [f.fit(row, rule.overflow) for f, row in zip(layer.outputs, rounded, strict=True)]
    )


def plain_step(
    rule: LayeredRule, state: IntArray, sample: IntArray, valid: NDArray[np.bool_]
) -> IntArray:
    """`LayeredRule.step` of one clip, all sums in int64."""
    channels = rule.config.channels
    x, old, age = state[:channels], state[channels], state[channels + 1]
    last = np.where(valid, sample, old)
    trace = np.where(valid, rule.trace_format.highest, np.maximum(age - 1, 0))
    flicker = np.where(age > 0, last - old, 0)
    fresh = valid & (age < rule.trace_format.highest)
    seen = np.concatenate([x, rule.inputs(x, last, trace, valid, fresh, flicker)])
    hidden = plain_layer(rule, rule.perceive, rule.neighbourhood(seen))
    update = plain_layer(rule, rule.update, hidden[:, None]).reshape(-1, *sample.shape)
    return np.concatenate([rule.apply_update(x, update), [last, trace]])


def by_steps(
    rule: LayeredRule, step: Callable[..., IntArray], shown: IntArray, valid: NDArray[np.bool_]
) -> IntArray:
    """State after all frames, each step done by `step`."""
    state = rule.initial_state(SIDE, SIDE)
    for sample, arrived in zip(shown, valid, strict=True):
        for _ in range(rule.config.steps_per_frame):
            state = step(state, sample, arrived)
    return state


def best_seconds(run: Callable[[], object]) -> float:
    """Least wall time of a few runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rule", nargs="?", default="retina-int")
    rule = LayeredRule.load(rule_path(parser.parse_args().rule))
    if not supports(rule):
        raise SystemExit("the engine does not support this rule, or there is no g++")
    rng = np.random.default_rng(0)
    low, high = rule.sample_format.lowest, rule.sample_format.highest
    shown = rng.integers(low, high + 1, (FRAMES, SIDE, SIDE))
    valid = rng.random(shown.shape) < 0.01
    steps = rule.config.steps_per_frame
    threads = os.cpu_count() or 1
    engines = [Engine(rule, SIDE, SIDE) for _ in range(threads)]

    expected = by_steps(rule, rule.step, shown[:2], valid[:2])
    plain = by_steps(rule, lambda *now: plain_step(rule, *now), shown[:2], valid[:2])
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(
        Engine(rule, SIDE, SIDE).advance(shown[:2], valid[:2])[-1], expected
    )

    with ThreadPoolExecutor(threads) as pool:
        fast = best_seconds(lambda: list(pool.map(lambda e: e.advance(shown, valid), engines)))
    one = best_seconds(lambda: engines[0].advance(shown, valid))
    slow = best_seconds(lambda: by_steps(rule, rule.step, shown[:1], valid[:1]))
    slowest = best_seconds(
        lambda: by_steps(rule, lambda *now: plain_step(rule, *now), shown[:1], valid[:1])
    )
    updates = SIDE * SIDE * steps
    rates = {
        f"engine, {threads} threads": threads * FRAMES * updates / fast,
        "engine, 1 thread": FRAMES * updates / one,
        "LayeredRule.step": updates / slow,
        "int64 sums in NumPy": updates / slowest,
    }
    base = rates["int64 sums in NumPy"]
    print(f"{rule.config.macs} MACs a cell update; all give the same codes")
    for name, rate in rates.items():
        print(f"{name:22} {rate / 1e6:8.2f} million cell updates/s  {rate / base:7.1f} x")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
