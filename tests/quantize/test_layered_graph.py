"""Layered rules as step graphs compute the codes that they always computed."""

from typing import Any

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph import golden
from scotopia.graph.intervals import prove
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.sim.random_rules import any_rule


def compare(rule: LayeredRule, seed: int, steps: int = 4) -> None:
    graph = rule.graph
    rng = np.random.default_rng(seed)
    shape = (5, 6)
    state = np.stack([rng.integers(f.lowest, f.highest + 1, shape) for f in rule.channel_formats])
    for _ in range(steps):
        format = rule.sample_format
        sample = rng.integers(format.lowest, format.highest + 1, shape)
        valid = rng.random(shape) < 0.4
        noise = rng.integers(0, 2, (rule.noise_planes, *shape)) if rule.noise_planes else None
        after = rule.step(state, rule.given(sample, valid), noise)
        found = golden.step(graph, state, {"sample": sample, "valid": valid}, noise)
        np.testing.assert_array_equal(found, after)
        state = after


@pytest.mark.parametrize("name", ["retina-int", "retina-shift"])
def test_shipped_rules(name: str) -> None:
    rule = LayeredRule.load(rule_path(name))
    compare(rule, 0)
    proof: Any = rule.proof
    ranges = prove(rule.graph)
    for channel, held in proof.channels.items():
        assert ranges.channels[channel].ends == held.ends
    words = {name: word for word, name in rule.graph.names.items()}
    for result, claimed in proof.results.items():
        assert ranges.words[words[result]].ends == claimed.fitted.ends, result


@pytest.mark.parametrize("seed", range(60))
def test_random_rules(seed: int) -> None:
    compare(any_rule(seed), seed)
