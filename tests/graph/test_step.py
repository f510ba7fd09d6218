"""Step graphs that are made of others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden
from scotopia.graph.operations import Channel
from scotopia.sim.random_graphs import any_graph


@pytest.mark.parametrize("seed", range(12))
def test_a_graph_that_keeps_words_computes_the_same_and_they_are_channels(
    seed: int, moment: Callable[..., Any]
) -> None:
    graph = any_graph(seed)
    words = {f"kept {word}": word for word in sorted(graph.formats)[-2:]}
    keeping = graph.keeping(words)
    now = moment(graph, seed, 4, 5)
    seen: list[np.ndarray] = []
    expected = golden.step(
        graph, now.state, now.inputs, now.noise, lambda _, codes: seen.extend(codes)
    )
    more = np.concatenate([now.state, np.zeros((len(words), 4, 5), np.int64)])
    found = golden.step(keeping, more, now.inputs, now.noise)
    assert np.array_equal(found, [*expected, *(seen[word] for word in words.values())])
    assert keeping.channel_formats[-2:] == tuple(graph.formats[word] for word in words.values())
    assert list(keeping.channels) == [*graph.channels, *words]


def test_names_go_with_their_words() -> None:
    graph = any_graph(3)
    named = type(graph)(graph.operations, graph.outputs, {graph.count - 1: "last", 0: "first"})
    kept = named.keeping({"more": graph.count - 1})
    assert kept.name(kept.count - 1) == "last" and kept.name(0) == "first"
    assert isinstance(kept.operations[0], Channel)
