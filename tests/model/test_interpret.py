from typing import Any

import numpy as np
import pytest
import torch

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.operations import OPERATIONS, Random
from scotopia.graph.qformat import QFormat
from scotopia.graph.step import StepGraph
from scotopia.model.interpret import Interpreter
from scotopia.sim.random_graphs import any_graph


def noise_values(graph: StepGraph, planes: np.ndarray | None) -> torch.Tensor | None:
    """Random words of the golden model's planes of bits."""
    if planes is None:
        return None
    numbers, taken = [], 0
    for _, one in graph.of_kind(Random):
        assert isinstance(one, Random)
        for bits in one.bits:
            weights = 2.0 ** -np.arange(1, bits + 1)[:, None, None]
            numbers.append((planes[taken : taken + bits] * weights).sum(0))
            taken += bits
    return torch.from_numpy(np.stack(numbers))[None]


@pytest.mark.parametrize("seed", range(60))
def test_values_are_those_of_the_golden_model(seed: int, moment: Any) -> None:
    graph = any_graph(seed)
    now = moment(graph, seed)

    def values(codes: np.ndarray, word: int) -> torch.Tensor:
        return torch.from_numpy(np.ldexp(codes.astype(float), -graph.fractions[word]))

    words = list(graph.channels.values())
    state = torch.stack([values(c, w) for c, w in zip(now.state, words, strict=True)])[None]
    inputs = {n: values(now.inputs[n], word)[None] for n, word in graph.inputs.items()}
    found = Interpreter(graph)(state, inputs, noise_values(graph, now.noise))
    after = golden.step(graph, now.state, now.inputs, now.noise)
    expected = [values(c, w) for c, w in zip(after, graph.outputs, strict=True)]
    assert torch.equal(found[0], torch.stack(expected))


def test_every_kind_of_operation_was_compared() -> None:
    kinds = {type(operation) for seed in range(60) for operation in any_graph(seed).operations}
    assert kinds == set(OPERATIONS)


def test_draws_are_multiples_in_the_unit_interval() -> None:
    build = Builder()
    x = build.channels({"x": None})
    build.random(2, 5)
    graph = build.graph({"x": x})
    drawn = Interpreter(graph).draw(torch.zeros(3, 1, 20, 20), torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 2, 20, 20)
    assert set(drawn[:, 0].unique().tolist()) == {0, 0.25, 0.5, 0.75}
    assert len(drawn[:, 1].unique()) == 32 and drawn.max() < 1


def test_gradients_reach_state_and_weights() -> None:
    build = Builder()
    x = build.channels({"x": None, "y": None})
    total = build.linear(x, np.full((2, 2, 9), 0.1), [0.1, -5], "wrap").maximum(0)
    graph = build.graph({"x": total[0], "y": total[1]})
    state = torch.ones(1, 2, 3, 3, requires_grad=True)
    weight = torch.full((2, 2, 9), 0.1, requires_grad=True)
    bias = torch.tensor([0.1, -5], requires_grad=True)
    after = Interpreter(graph)(state, weights={1: (weight, bias)})
    after.sum().backward()
    assert torch.allclose(after[:, 0], torch.full((1, 3, 3), 1.9)) and (after[:, 1] == 0).all()
    assert torch.allclose(state.grad, torch.full_like(state, 0.9))
    assert (weight.grad[0] == 9).all() and (weight.grad[1] == 0).all()
    assert bias.grad.tolist() == [9, 0]


def test_a_maximum_with_zero_has_the_gradient_of_a_relu() -> None:
    build = Builder()
    graph = build.graph({"x": build.channels({"x": None}).maximum(0)})
    state = torch.tensor([-1.0, 0.0, 1.0])[None, None, None].requires_grad_()
    Interpreter(graph)(state).sum().backward()
    assert state.grad.flatten().tolist() == [0, 0, 1]


def test_a_fit_passes_gradients_inside_its_format() -> None:
    build = Builder()
    graph = build.graph({"x": build.channels({"x": None}).fit(QFormat(1, 3))})
    state = torch.tensor([-3.0, 0.3, 0.5, 2.0])[None, None, None].requires_grad_()
    after = Interpreter(graph)(state)
    after.sum().backward()
    assert after.flatten().tolist() == [-1, 0.25, 0.5, 0.875]
    assert state.grad.flatten().tolist() == [0, 1, 1, 0]


def test_what_cannot_be_clipped_passes_gradients_at_the_ends_of_its_format() -> None:
    """A move by a share of the way ends between where it begins and where it leads to."""
    build, format = Builder(), QFormat(1, 3)
    x, share, target = build.channels(
        {"x": format, "share": QFormat(0, 2, signed=False), "target": format}
    )
    way = (share * (target - x)).fit(QFormat(2, 3))
    graph = build.graph({"x": (x + way).fit(format), "share": share, "target": target})
    state = torch.tensor([[0.875, -1, 0.5], [0.75, 0.5, 0], [0.875, -1, 0.5]])[None, :, None]
    state.requires_grad_()
    after = Interpreter(graph)(state)
    after[:, 0].sum().backward()
    assert after[0, 0, 0].tolist() == [0.875, -1, 0.5]
    assert state.grad[0, 0, 0].tolist() == [0.25, 0.5, 1]
    assert state.grad[0, 2, 0].tolist() == [0.75, 0.5, 0]


@pytest.mark.parametrize(
    ("state", "noise", "said"),
    [
        ((1, 2, 3, 3), (1, 1, 3, 3), "state has 2 planes, the graph takes 1"),
        ((1, 1, 3, 3), (1, 2, 3, 3), "noise has 2 planes, the graph takes 1"),
    ],
)
def test_another_number_of_planes_is_refused(state: Any, noise: Any, said: str) -> None:
    build = Builder()
    x = build.channels({"x": None})
    graph = build.graph({"x": build.where(build.random(8) < 0.5, x, 0.0)})
    with pytest.raises(ValueError, match=said):
        Interpreter(graph)(torch.zeros(state), noise=torch.zeros(noise))
