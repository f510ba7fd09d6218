import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import OPERATIONS, Constant, Linear, Random
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.model import compiled
from scotopia.model.compiled import run
from scotopia.model.config import INPUTS
from scotopia.model.interpret import Interpreter
from scotopia.model.rule import Rule
from scotopia.model.unroll import draw_fired, unroll_compiled, unroll_plainly
from scotopia.sim.random_graphs import any_graph

Make = Callable[..., Any]  # a fixture of conftest.py

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.usefixtures("compiler"),
]

STEPS, FRAMES, VIDEOS = 2, 2, 2
SEEDS = range(3, 11)


@dataclass
class Chunk:
    """All that a chunk of an integer graph needs, as codes and as values."""

    graph: StepGraph
    state: np.ndarray
    inputs: dict[str, np.ndarray]
    planes: np.ndarray
    weights: dict[int, tuple[Tensor, ...]]

    @classmethod
    def draw(cls, graph: StepGraph, seed: int, height: int = 5, width: int = 19) -> "Chunk":
        rng = np.random.default_rng(seed)

        def codes(word: int, *shape: int) -> np.ndarray:
            format = graph.formats[word]
            return rng.integers(format.lowest, format.highest + 1, (*shape, height, width))

        state = np.stack([codes(word, VIDEOS) for word in graph.channels.values()], 1)
        inputs = {name: codes(word, VIDEOS, FRAMES) for name, word in graph.inputs.items()}
        shape = (VIDEOS, FRAMES * STEPS, graph.random_bits, height, width)
        weights: dict[int, tuple[Tensor, ...]] = {}
        for index, operation in enumerate(graph.operations):
            arrays: list[Any] = []
            if isinstance(operation, Linear):
                arrays = [operation.weight, operation.bias]
            if isinstance(operation, Constant):
                arrays = [operation.values]
            if arrays and rng.random() < 0.7:
                weights[index] = tuple(
                    torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays
                )
        return cls(graph, state, inputs, rng.integers(0, 2, shape), weights)

    def values(self, codes: np.ndarray, words: Any) -> Tensor:
        units = np.array([2.0 ** -self.graph.fractions[word] for word in words])
        return torch.from_numpy(codes * units[:, None, None])

    @property
    def shown(self) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.ldexp(codes, -self.graph.fractions[self.graph.inputs[name]]))
            for name, codes in self.inputs.items()
        }

    @property
    def start(self) -> Tensor:
        return self.values(self.state, self.graph.channels.values())

    @property
    def noise(self) -> Tensor | None:
        numbers, taken = [], 0
        for _, one in self.graph.of_kind(Random):
            assert isinstance(one, Random)
            for bits in one.bits:
                units = 2.0 ** -np.arange(1, bits + 1)[:, None, None]
                numbers.append((self.planes[:, :, taken : taken + bits] * units).sum(2))
                taken += bits
        return torch.from_numpy(np.stack(numbers, 2)) if numbers else None

    def unrolled(self) -> tuple[Tensor, Tensor]:
        return compiled.unroll(
            self.graph,
            self.weights,
            self.start,
            self.shown,
            frames=FRAMES,
            steps_per_frame=STEPS,
            noise=self.noise,
        )

    def golden(self) -> Tensor:
        """Values of the codes after each frame."""
        state, found = self.state, []
        for i in range(FRAMES * STEPS):
            given = {name: codes[:, i // STEPS] for name, codes in self.inputs.items()}
            noise = self.planes[:, i] if self.graph.random_bits else None
            state = golden.step(self.graph, state, given, noise)
            if i % STEPS == STEPS - 1:
                found.append(self.values(state, self.graph.outputs))
        return torch.stack(found, 1)


def interpreted(
    graph: StepGraph,
    weights: Mapping[int, tuple[Tensor, ...]],
    state: Tensor,
    inputs: Mapping[str, Tensor],
    frames: int,
    steps: int,
    noise: Tensor | None,
) -> Tensor:
    run, found = Interpreter(graph), []
    for i in range(frames * steps):
        given = {name: planes[:, i // steps] for name, planes in inputs.items()}
        state = run(state, given, None if noise is None else noise[:, i], weights)
        if i % steps == steps - 1:
            found.append(state)
    return torch.stack(found, 1)


def gradients(found: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of all weights; zeros where nothing depends on them."""
    if not found.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(found.shape, generator=generator).to(found)
    got = torch.autograd.grad((found * target).sum(), weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, got, strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-4) -> None:
    largest = max((float(one.abs().max()) for one in theirs if one.numel()), default=0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance / 10 * largest)


def check(chunk: Chunk) -> None:
    found, last = chunk.unrolled()
    assert torch.equal(found, chunk.golden())
    assert torch.equal(last, found[:, -1])
    expected = interpreted(
        chunk.graph, chunk.weights, chunk.start, chunk.shown, FRAMES, STEPS, chunk.noise
    )
    weights = [part for parts in chunk.weights.values() for part in parts]
    same(gradients(found, weights), gradients(expected, weights))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs_have_the_golden_models_values_and_the_interpreters_gradients(
    seed: int,
) -> None:
    check(Chunk.draw(any_graph(seed), seed))


def test_every_kind_of_operation_was_compared() -> None:
    kinds = {type(operation) for seed in SEEDS for operation in any_graph(seed).operations}
    assert kinds == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_more_random_graphs(seed: int) -> None:
    check(Chunk.draw(any_graph(seed), seed, width=1 + seed % 34))


@pytest.mark.parametrize(
    ("hidden_format", "kept"), [(QFormat(2, 10), torch.float32), (QFormat(12, 18), torch.float64)]
)
def test_what_floats_cannot_hold_is_computed_in_doubles(
    hidden_format: QFormat, kept: torch.dtype
) -> None:
    """Sums of 26 bits and more; then such that are kept, too."""
    build = Builder()
    format = QFormat(2, 12)
    x = build.channels(dict.fromkeys("abcd", format))
    rng = np.random.default_rng(0)
    weight = rng.integers(-100, 101, (8, 4, 9)) * 2.0**-6
    total = build.linear(x, weight, rng.integers(-9, 10, 8) * 2.0**-18, "wrap")
    hidden = total.fit(hidden_format, Rounding.RND_CONV)
    back = build.linear(hidden, rng.integers(-9, 10, (4, 8, 1)) * 2.0**-5, np.zeros(4))
    after = (x + back).fit(format)
    graph = build.graph({name: after[i] for i, name in enumerate("abcd")})
    chunk = Chunk.draw(graph, 1)
    code = run._code(graph, chunk.weights, {})
    assert code.real is torch.float64
    assert code.kept is kept
    assert not code.source.wide.intersection(graph.channels.values())
    check(chunk)


def test_code_in_which_more_words_are_wide_serves_as_well() -> None:
    made = run._Made(any_graph(3), (), {})
    code = made.source(frozenset({0, 1}), False)
    assert made.source(frozenset({1}), False) is code
    assert made.source(frozenset({1, 2}), False) is not code
    assert made.source(frozenset({1}), True) is not code


def test_what_doubles_cannot_hold_is_refused() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(2, 30)})
    graph = build.graph({"x": (x * x).fit(QFormat(2, 30))})
    said = "a word of the step may need 64 bits, doubles hold 53: quantize the rule with fewer"
    with pytest.raises(InputError, match=said):
        compiled.unroll(graph, {}, torch.zeros(1, 1, 2, 2), frames=1)


def clip_of(rule: Rule, videos: int = 2, height: int = 9, width: int = 37) -> Any:
    """A state in mid-flight, samples, and where they are valid."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    config = rule.config
    state = random(videos, len(config.channel_names), height, width)
    samples = 2 * random(videos, 3, config.pixels, height, width) - 1
    return state, samples, (random(*samples.shape) < 0.3).float()


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": INPUTS, "trace_bits": 8},
        {"inputs": INPUTS, "block": 2, "channels": 6, "border": "wrap"},
        {"inputs": (), "kind": "residual", "border": "zero", "hidden": 19, "channels": 9},
        {"inputs": ("valid", "innovation"), "fire_rate": 0.5, "perception": "depthwise"},
        {"inputs": ("sample", "trust", "recall"), "border": "zero", "perception": "sobel"},
        {"inputs": ("innovation",), "channels": 1, "hidden": 1},
    ],
    ids=str,
)
def test_the_float_rule_is_what_its_module_computes(
    fields: dict[str, Any], small_config: Make
) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(**fields))
    with torch.no_grad():  # far enough for gates, candidates and states to saturate
        for parameter in rule.parameters():
            parameter.mul_(2)
    clip = clip_of(rule)
    fired = draw_fired(rule, clip[1], torch.Generator().manual_seed(1))
    expected, expected_state = unroll_plainly(rule, *clip, fired)
    found, found_state = unroll_compiled(rule, *clip, fired)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_state, expected_state, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        alone, alone_state = unroll_compiled(rule, *clip, fired)
    assert torch.equal(alone, found) and torch.equal(alone_state, found_state)
    parameters = list(rule.parameters())
    same(gradients(found, parameters), gradients(expected, parameters))


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 33, 48])
def test_every_width_is_right(width: int, small_config: Make) -> None:
    torch.manual_seed(1)
    rule = Rule(small_config())
    clip = clip_of(rule, videos=1, height=3, width=width)
    parameters = list(rule.parameters())
    found = gradients(unroll_compiled(rule, *clip)[0], parameters)
    same(found, gradients(unroll_plainly(rule, *clip)[0], parameters))


def test_threads_do_not_change_the_gradient(small_config: Make) -> None:
    torch.manual_seed(2)
    rule = Rule(small_config())
    clip, parameters, found = clip_of(rule, videos=5), list(rule.parameters()), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(gradients(unroll_compiled(rule, *clip)[0], parameters))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *found))


def test_a_chunk_begun_while_another_waits_does_not_disturb_it(small_config: Make) -> None:
    torch.manual_seed(3)
    rule = Rule(small_config())
    first, second = clip_of(rule), clip_of(rule)
    parameters = list(rule.parameters())
    unroll_compiled(rule, *second)[0].sum().backward()  # leaves its arrays for the next
    waiting = unroll_compiled(rule, *first)[0]
    unroll_compiled(rule, *second)[0].sum().backward()
    expected = unroll_plainly(rule, *first)[0]
    same(gradients(waiting, parameters), gradients(expected, parameters))


SOBEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]


@pytest.mark.parametrize("learned", [False, True])
def test_a_growing_automaton_is_what_pytorch_computes(learned: bool) -> None:
    """After Mordvintsev et al. (2020); with fixed filters of each channel, or learned ones."""
    torch.manual_seed(0)
    channels, hidden, steps = 6, 20, 5
    identity = torch.zeros(3, 3).index_fill_(0, torch.tensor(1), 1) * torch.eye(3)[1]
    sobel = torch.tensor(SOBEL) / 8
    filters = torch.stack([identity, sobel, sobel.T]).repeat(channels, 1, 1)[:, None]
    where = torch.zeros(3 * channels, channels, 1)
    where[torch.arange(3 * channels), torch.arange(3 * channels) // 3] = 1

    build = Builder()
    x = build.channels({f"x{i}": None for i in range(channels)})
    full = (where * filters.flatten(1)[:, None]).double().numpy()
    seen = build.linear(x, full, np.zeros(3 * channels))
    total = build.linear(seen, np.ones((hidden, 3 * channels, 1)), np.ones(hidden)).maximum(0)
    update = build.linear(total, np.ones((channels, hidden, 1)), np.ones(channels))
    moved = x + build.where(build.random(8) < 0.5, update, 0.0)
    alive = (build.window(x[3]) > 0.1).minimum(build.window(moved[3]) > 0.1)
    after = build.where(alive, moved, 0.0)
    graph = build.graph({f"x{i}": after[i] for i in range(channels)})
    perceive, first, second = (index for index, _ in graph.of_kind(Linear))

    def drawn(*shape: int) -> Tensor:
        return (0.3 * torch.randn(shape)).requires_grad_()

    parts = [drawn(hidden, 3 * channels), drawn(hidden), drawn(channels, hidden), drawn(channels)]
    if learned:
        filters.requires_grad_()
    state = torch.rand(2, channels, 11, 21) * (torch.rand(2, 1, 11, 21) < 0.2)
    noise = torch.randint(256, (2, steps, 1, 11, 21)) / 256

    after_each, now = [], state
    for t in range(steps):
        before = F.max_pool2d(now[:, 3:4], 3, 1, 1) > 0.1
        shown = F.conv2d(now, filters, padding=1, groups=channels)
        neurons = F.conv2d(shown, parts[0][..., None, None], parts[1]).relu()
        step = F.conv2d(neurons, parts[2][..., None, None], parts[3])
        now = now + step * (noise[:, t] < 0.5)
        now = now * (before & (F.max_pool2d(now[:, 3:4], 3, 1, 1) > 0.1))
        after_each.append(now)
    expected = torch.stack(after_each, 1)

    weights = {first: (parts[0][..., None], parts[1]), second: (parts[2][..., None], parts[3])}
    patterns = {}
    if learned:
        bias = torch.zeros(3 * channels)
        weights[perceive] = where * filters.flatten(1)[:, None], bias
        patterns[perceive] = (where > 0).expand(-1, -1, 9).numpy()
    found, _ = compiled.unroll(graph, weights, state, frames=steps, noise=noise, patterns=patterns)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    trained = [*parts, filters] if learned else parts
    same(gradients(found, trained), gradients(expected, trained))


def test_numbers_at_the_ends_of_an_interval_keep_their_gradient(small_config: Make) -> None:
    """In the first step from a state of zeros, trust is 0 without being clipped."""
    torch.manual_seed(0)
    rule = Rule(small_config(inputs=("trust",), steps_per_frame=2))
    state = rule.initial_state(1, 5, 6)
    shown = torch.zeros(2, 1, 2, 1, 5, 6).unbind()
    parameters = list(rule.parameters())
    found = gradients(unroll_compiled(rule, state, *shown)[0], parameters)
    same(found, gradients(unroll_plainly(rule, state, *shown)[0], parameters))


def test_chunks_of_all_lengths_share_their_arrays(small_config: Make) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(steps_per_frame=1))
    state = rule.initial_state(2, 5, 6)
    run._spare.clear()
    for frames in (2, 7, 3, 7, 1):
        shown = torch.rand(2, 2, frames, 1, 5, 6).unbind()
        parameters = list(rule.parameters())
        found = gradients(unroll_compiled(rule, state, *shown)[0], parameters)
        same(found, gradients(unroll_plainly(rule, state, *shown)[0], parameters))
    assert sorted(len(arrays) for arrays in run._spare.values()) in ([1, 1], [2])
