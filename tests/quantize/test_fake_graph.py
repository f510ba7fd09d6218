"""Integer rules of any graph in training: what they compute, and what training moves."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear, Random
from scotopia.graph.qformat import QFormat
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.interpret import Interpreter
from scotopia.model.options import LoopOptions
from scotopia.model.tasks import Batch, Task
from scotopia.model.train import Trainer, run
from scotopia.quantize.fake_graph import FakeQuantGraph
from scotopia.quantize.integer_rule import GraphRule
from scotopia.sim.random_graphs import any_graph

FRAMES, STEPS, VIDEOS, HEIGHT, WIDTH = 2, 2, 2, 5, 18


def all_layers(graph: StepGraph) -> dict[int, Any]:
    return {
        index: (np.ones(layer.weight.shape, bool), np.ones(layer.bias.shape, bool))
        for index, layer in graph.of_kind(Linear)
        if isinstance(layer, Linear)
    }


def rule_of(graph: StepGraph) -> GraphRule:
    """All of whose layers are trained."""
    events = tuple(Event(name) for name in graph.inputs)
    return GraphRule(graph, STEPS, events, trained=all_layers(graph))


def twin_of(seed: int) -> FakeQuantGraph:
    """A twin of a random graph that has a layer, its weights moved a little off their grids."""
    for number in range(1000 * seed, 1000 * (seed + 1)):
        graph = any_graph(number)
        if all_layers(graph):
            break
    twin = FakeQuantGraph(rule_of(graph)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return twin


class Run:
    """A chunk of a twin's life, as values and as the golden model's codes."""

    def __init__(self, twin: FakeQuantGraph, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.twin, self.graph = twin, twin.graph

        def codes(word: int, *shape: int) -> Any:
            format = self.graph.formats[word]
            return rng.integers(format.lowest, format.highest + 1, (*shape, HEIGHT, WIDTH))

        channels = self.graph.channels.values()
        self.state = np.stack([codes(word, VIDEOS) for word in channels], 1)
        self.inputs = {n: codes(word, VIDEOS, FRAMES) for n, word in self.graph.inputs.items()}

    def unrolled(self) -> Tensor:
        shown = {
            name: torch.from_numpy(self.graph.formats[self.graph.inputs[name]].values(codes))
            for name, codes in self.inputs.items()
        }
        generator = torch.Generator().manual_seed(0)
        start = self.values(self.state)
        return self.twin.unroll(start, shown, frames=FRAMES, generator=generator)[0]

    def golden(self) -> Tensor:
        generator, state, found = torch.Generator().manual_seed(0), self.state, []
        like, run = torch.zeros(self.state.shape, dtype=torch.float64), Interpreter(self.graph)
        for i in range(FRAMES * STEPS):
            given = {name: codes[:, i // STEPS] for name, codes in self.inputs.items()}
            noise = self.planes(run.draw(like, generator).numpy()) if run.random else None
            state = golden.step(self.graph, state, given, noise)
            if i % STEPS == STEPS - 1:
                found.append(self.values(state))
        return torch.stack(found, 1)

    def values(self, codes: Any) -> Tensor:
        formats = enumerate(self.graph.channel_formats)
        return torch.from_numpy(np.stack([f.values(codes[:, c]) for c, f in formats], 1))

    def planes(self, words: Any) -> Any:
        """Bits of random words (B, R, H, W), the highest first."""
        bits = [
            b for _, one in self.graph.of_kind(Random) if isinstance(one, Random) for b in one.bits
        ]
        rows = [
            (words[:, i] * 2**count).astype(int) >> shift & 1
            for i, count in enumerate(bits)
            for shift in reversed(range(count))
        ]
        return np.stack(rows, 1)

    def gradients(self) -> list[Tensor]:
        outputs = self.unrolled()
        generator = torch.Generator().manual_seed(1)
        towards = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        weights = list(self.twin.parameters())
        if not outputs.requires_grad:
            return [torch.zeros_like(weight) for weight in weights]
        found = torch.autograd.grad((outputs * towards).sum(), weights, allow_unused=True)
        return [
            torch.zeros_like(weight) if one is None else one
            for weight, one in zip(weights, found, strict=True)
        ]


def runs_with_gradients() -> Iterator[Run]:
    """Runs of random graphs in which something depends on a weight."""
    for seed in range(100):
        run = Run(twin_of(seed), seed)
        if any(one.any() for one in run.gradients()):
            yield run


@pytest.mark.parametrize("seed", range(20))
def test_pytorch_computes_the_golden_models_values(seed: int) -> None:
    run = Run(twin_of(seed), seed)
    assert torch.equal(run.unrolled(), run.golden())


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("number", range(4))
def test_compiled_it_has_the_same_values_and_gradients(
    number: int, request: pytest.FixtureRequest
) -> None:
    run = next(islice(runs_with_gradients(), number, None))
    plain = run.gradients()
    request.getfixturevalue("compiler")
    assert torch.equal(run.unrolled(), run.golden())
    largest = max(float(one.abs().max()) for one in plain)
    for ours, theirs in zip(run.gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


def test_at_first_it_is_its_integer_rule() -> None:
    for seed in range(20):
        graph = twin_of(seed).integer.graph
        again = FakeQuantGraph(rule_of(graph)).double().graph
        for index in all_layers(graph):
            for one, other in zip(graph.codes_of(index), again.codes_of(index), strict=True):
                np.testing.assert_array_equal(one, other)


WIDE = QFormat(2, 8)


def fading() -> GraphRule:
    """Two channels, the first a mean of its neighbours that is fixed, the second a sum of both."""
    build = Builder()
    x = build.channels({"a": WIDE, "b": WIDE})
    mean = build.linear(x[:1], np.full((1, 1, 9), 1 / 8), np.zeros(1), "wrap")
    both = build.linear(x, np.array([[[0.25], [0.5]]]), np.array([0.125]))
    graph = build.graph({"a": mean.fit(WIDE), "b": both.fit(WIDE)})
    _, index = (index for index, _ in graph.of_kind(Linear))
    masks = np.array([[[True], [False]]]), np.array([True])
    start = Initial.cell(np.array([1.0, 0.5]))
    return GraphRule(graph, 2, initial=start, trained={index: masks}).with_proof()


class Rise(Task):
    """Let the second channel be 1 everywhere."""

    defaults = LoopOptions(iterations=40, batch=1, learning_rate=0.02, optimizer="adam", average=0)

    def batch(self, iteration: int, rng: np.random.Generator) -> Batch:
        return Batch(self.initial(4, 4), frames=2)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs[:, -1, 1] - 1).square().mean()


def test_training_moves_what_is_trained_along_its_grid_and_nothing_else() -> None:
    rule, losses = fading(), []
    made = run(
        Trainer(FakeQuantGraph(rule), Rise(), Rise.defaults), lambda _, loss: losses.append(loss)
    )
    assert losses[-1] < 0.5 * losses[0]
    after = made.integer_rule()
    (fixed, old), (same, new) = (
        [one for _, one in graph.of_kind(Linear)] for graph in (rule.graph, after.graph)
    )
    assert np.array_equal(fixed.weight, same.weight)
    assert new.weight[0, 1] == old.weight[0, 1] and new.bias != old.bias
    assert after.proof is not None and after.trained == rule.trained
    assert after.training["iterations"] == 40


def test_states_and_inputs_are_brought_to_their_formats() -> None:
    build = Builder()
    x, light = build.channels({"x": WIDE}), build.inputs({"light": QFormat(0, 2, signed=False)})
    total = build.linear(build.concatenate([x, light]), np.array([[[1.0], [0.5]]]), np.zeros(1))
    graph = build.graph({"x": total.fit(WIDE)})
    twin = FakeQuantGraph(rule_of(graph))
    states, shown = torch.tensor([5.0, 0.3])[:, None, None, None], torch.tensor([0.0, 0.6])
    outputs, _ = twin.unroll(states, {"light": shown[:, None, None, None]}, frames=1, steps=1)
    assert outputs.flatten().tolist() == [2 - 2**-8, 77 / 256 + 0.25]


def test_what_a_file_says_of_training_is_read(tmp_path: Path) -> None:
    rule = fading()
    rule.save(tmp_path / "a.safetensors")
    again = GraphRule.load(tmp_path / "a.safetensors")
    assert again.trained.keys() == rule.trained.keys()
    for index, masks in rule.trained.items():
        assert all(map(np.array_equal, masks, again.trained[index]))
    FakeQuantGraph(again).save(tmp_path / "b.safetensors")
    assert GraphRule.load(tmp_path / "b.safetensors").trained.keys() == rule.trained.keys()


def test_a_rule_that_does_not_say_what_is_trained_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the integer rule does not say which of its weights "):
        FakeQuantGraph(replace(fading(), trained={}))
    with pytest.raises(InputError, match=r"^operation 0 has not the numbers that are trained"):
        replace(fading(), trained={0: (np.array([True]),)})
