"""Speed of the golden model: python bench/golden_speed.py [RULE]

Cell updates a second of an integer rule on 128 x 128 cells: by the compiled engine, on as many
threads as there are cores, each with a clip of its own; by `IntegerRule.step`; and by the same step
with nothing but int64 sums, as one would write it down. All three must give the same codes.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from scotopia.cli.rules import rule_path
from scotopia.graph import golden
from scotopia.graph.engine import Engine
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.graph.qformat import IntArray
from scotopia.quantize.integer_rule import IntegerRule

SIDE = 128
FRAMES = 16

#: Repetitions, of which the best counts: others only make a run slower.
REPEATS = 3


def by_engine(
    engine: Engine, rule: IntegerRule, shown: IntArray, valid: NDArray[np.bool_]
) -> IntArray:
    """State after all frames, done by the engine."""
    engine.state = rule.initial_state(SIDE, SIDE)
    for sample, arrived in zip(shown, valid, strict=True):
        engine.advance(rule.given(sample, arrived), rule.steps_per_frame)
    return engine.state


def by_steps(rule: IntegerRule, shown: IntArray, valid: NDArray[np.bool_]) -> IntArray:
    """State after all frames, done by `IntegerRule.step`."""
    state = rule.initial_state(SIDE, SIDE)
    for sample, arrived in zip(shown, valid, strict=True):
        for _ in range(rule.steps_per_frame):
            state = rule.step(state, rule.given(sample, arrived))
    return state


def by_plain_steps(rule: IntegerRule, shown: IntArray, valid: NDArray[np.bool_]) -> IntArray:
    """State after all frames, done by steps whose sums are int64 alone."""
    with mock.patch.object(golden, "product", lambda matrix, codes: matrix @ codes):
        return by_steps(rule, shown, valid)


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
    rule = IntegerRule.load(rule_path(parser.parse_args().rule))
    if rule.noise_planes:
        raise SystemExit("this rule draws random bits: choose one that does not, as retina-int")
    threads = os.cpu_count() or 1
    engines = [Engine(rule.graph, SIDE, SIDE) for _ in range(threads)]
    if not engines[0].compiled:
        raise SystemExit("there is no C compiler, or it fails: install gcc")
    rng = np.random.default_rng(0)
    low, high = rule.event_format.lowest, rule.event_format.highest
    shown = rng.integers(low, high + 1, (FRAMES, SIDE, SIDE))
    valid = rng.random(shown.shape) < 0.01
    expected = by_plain_steps(rule, shown[:2], valid[:2])
    np.testing.assert_array_equal(by_steps(rule, shown[:2], valid[:2]), expected)
    np.testing.assert_array_equal(by_engine(engines[0], rule, shown[:2], valid[:2]), expected)

    def run(engine: Engine) -> IntArray:
        return by_engine(engine, rule, shown, valid)

    with ThreadPoolExecutor(threads) as pool:
        fast = best_seconds(lambda: list(pool.map(run, engines)))
    one = best_seconds(lambda: run(engines[0]))
    slow = best_seconds(lambda: by_steps(rule, shown[:1], valid[:1]))
    slowest = best_seconds(lambda: by_plain_steps(rule, shown[:1], valid[:1]))
    updates = SIDE * SIDE * rule.steps_per_frame
    rates = {
        f"engine, {threads} threads": threads * FRAMES * updates / fast,
        "engine, 1 thread": FRAMES * updates / one,
        "IntegerRule.step": updates / slow,
        "int64 sums in NumPy": updates / slowest,
    }
    base = rates["int64 sums in NumPy"]
    macs = sum(one.weight.size for _, one in rule.graph.of_kind(Linear) if isinstance(one, Linear))
    print(f"{macs} MACs a cell update; all give the same codes")
    for name, rate in rates.items():
        print(f"{name:22} {rate / 1e6:8.2f} million cell updates/s  {rate / base:7.1f} x")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
