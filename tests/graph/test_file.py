import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scotopia.graph.file import pack, unpack
from scotopia.graph.step import StepGraph
from scotopia.sim.random_graphs import any_graph


def drawn() -> StepGraph:
    return next(
        graph
        for graph in map(any_graph, range(100))
        if {"random", "constant"} <= {one["kind"] for one in pack(graph)[0]["operations"]}
    )


@pytest.mark.parametrize("first", [0, 20])
def test_random_graphs_come_back(first: int) -> None:
    for seed in range(first, first + 20):
        packed, tensors = pack(any_graph(seed))
        again, same = pack(unpack(json.loads(json.dumps(packed)), tensors))
        assert again == packed
        assert same.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(same[name], tensor)


def change(kind: str, field: str, value: Any) -> Callable[[Any], None]:
    def apply(packed: Any) -> None:
        next(one for one in packed["operations"] if one["kind"] == kind)[field][0] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("random", "bits", 0), r"\[0.*\] are no numbers of random bits"),
        (change("random", "bits", -1), r"\[-1.*\] are no numbers of random bits"),
        (change("random", "bits", 49), r"\[49.*\] are no numbers of random bits"),
        (change("constant", "values", float("inf")), "a number that is not finite"),
        (lambda packed: packed["names"].append([float("inf"), "x"]), "a name is not of a word"),
    ],
)
def test_numbers_that_no_graph_has_are_refused(damage: Callable[[Any], None], message: str) -> None:
    packed, tensors = pack(drawn())
    packed = json.loads(json.dumps(packed))
    damage(packed)
    with pytest.raises(ValueError, match=message):
        unpack(packed, tensors)
