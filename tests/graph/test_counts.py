import numpy as np

from scotopia.graph import counts
from scotopia.graph.build import Builder
from scotopia.graph.step import StepGraph


def graph_of(weight: np.ndarray, bias: float = 0.0) -> StepGraph:
    build = Builder()
    x = build.channels({f"x{i}": None for i in range(weight.shape[1])})
    found = build.linear(x, weight, np.full(len(weight), bias))
    return build.graph({f"x{i}": found[i % len(found)] for i in range(weight.shape[1])})


def test_a_depthwise_layer_has_the_weights_of_its_groups() -> None:
    weight = np.zeros((6, 2, 9))
    weight[:3, 0] = weight[3:, 1] = 1
    assert counts.macs(graph_of(weight)) == counts.parameters(graph_of(weight)) == 6 * 9
    weight[3, 0, 4] = 1  # now a group sees what is another's
    assert counts.macs(graph_of(weight)) == 6 * 2 * 9


def test_weights_of_a_group_keep_their_order() -> None:
    weight = np.zeros((4, 4, 1))
    weight[:2, :2, 0], weight[2:, 2:, 0] = [[1, 2], [3, 4]], [[5, 6], [7, 0]]
    (layer,) = counts.layers(graph_of(weight))
    assert counts.weights(layer)[..., 0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 0]]


def test_weights_of_zero_count_and_so_do_biases_if_there_are_any() -> None:
    weight = np.zeros((4, 4, 1))
    assert counts.macs(graph_of(weight)) == 16
    weight[0] = 1
    assert counts.parameters(graph_of(weight)) == 16
    assert counts.parameters(graph_of(weight, 0.5)) == 16 + 4
