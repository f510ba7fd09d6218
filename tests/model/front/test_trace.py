"""Modules that are accepted: their graph computes what they do."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.operations import Linear, Multiply, Random, Window
from scotopia.graph.step import StepGraph
from scotopia.model.config import RuleConfig
from scotopia.model.front import Traced, trace
from scotopia.model.growing.module import GrowingNCA
from scotopia.model.interpret import Interpreter
from scotopia.model.rule import Rule

KERNEL = torch.arange(9.0).reshape(3, 3) / 9 - 0.4


class Step(nn.Module):
    """A step that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def seeded(module: nn.Module, scale: float = 0.4) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                numbers = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(numbers.abs() + 0.5 if "var" in name else numbers)
    return module


def layer(*arguments: Any, **options: Any) -> nn.Module:
    return seeded(nn.Conv2d(*arguments, **options))


def run(traced: Traced, state: Tensor) -> Tensor:
    return Interpreter(traced.graph)(state, weights=traced.weights())


def kinds(graph: StepGraph) -> list[str]:
    return [type(operation).__name__ for operation in graph.operations]


def in_place(x: Tensor) -> Tensor:
    x = x * 1.5
    x[:, :2] += 0.25
    x[:, 3] = x[:, 3].clamp(0, 1)
    x[:, [0, 2]] = x[:, [0, 2]] * 0.5
    return x


def by_reshape(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = F.pad(x.reshape(b * c, 1, h, w), [1, 1, 1, 1], "circular")
    y = F.conv2d(y, torch.stack([KERNEL, KERNEL.T])[:, None])
    return y.reshape(b, -1, h, w)[:, ::2] + x


def by_hand(x: Tensor) -> Tensor:
    y = F.pad(x, (1, 1, 1, 1))
    return y[:, :, :-2, 1:-1] - y[:, :, 2:, 1:-1] + 2 * y[:, :, 1:-1, 2:] - y[:, :, :-2, :-2]


def turned(x: Tensor) -> Tensor:
    y = x.permute(0, 1, 3, 2)
    seen = F.conv2d(y, KERNEL.expand(4, 1, 3, 3), padding=1, groups=4)
    return x + (seen + F.max_pool2d(y, 3, 1, 1)).permute(0, 1, 3, 2)


STEPS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"conv {mode}": lambda mode=mode: layer(4, 4, 3, padding=1, padding_mode=mode)
        for mode in ("zeros", "replicate", "circular", "reflect")
    },
    "conv 1x1": lambda: layer(4, 4, 1),
    "conv grouped": lambda: layer(4, 4, 3, padding="same", groups=2, bias=False),
    "conv depthwise": lambda: layer(4, 4, 3, padding=1, groups=4),
    "conv 1x3 and 3x1": lambda: nn.Sequential(
        layer(4, 3, (1, 3), padding=(0, 1)), layer(3, 4, (3, 1), padding=(1, 0))
    ),
    "two convs": lambda: nn.Sequential(layer(4, 5, 3, padding=1), layer(5, 4, 3, padding=1)),
    "pad and conv": lambda: nn.Sequential(nn.ReplicationPad2d(1), layer(4, 4, 3)),
    "zero pad and conv": lambda: nn.Sequential(nn.ZeroPad2d(1), layer(4, 4, 3)),
    "reshaped into the batch": lambda: Step(by_reshape),
    "neighbours by slices": lambda: Step(by_hand),
    "rows and columns exchanged": lambda: Step(turned),
    "linear": lambda: Step(lambda x: lin(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "linear on movedim": lambda: Step(lambda x: lin(x.movedim(1, -1)).movedim(-1, 1)),
    "linear on rows of cells": lambda: Step(
        lambda x: (
            lin(x.permute(0, 2, 3, 1).reshape(-1, 4))
            .reshape(x.shape[0], x.shape[2], x.shape[3], 4)
            .permute(0, 3, 1, 2)
        )
    ),
    "einsum": lambda: Step(lambda x: torch.einsum("oi,bihw->bohw", MATRIX, x)),
    "einsum of groups": lambda: Step(
        lambda x: torch.einsum(
            "gio,bgihw->bgohw", MATRIX.reshape(2, 2, 4)[:, :, :2], x.unflatten(1, (2, 2))
        ).flatten(1, 2)
    ),
    "matmul": lambda: Step(lambda x: (MATRIX @ x.flatten(2)).unflatten(2, x.shape[2:])),
    "relu": lambda: nn.ReLU(),
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "relu6": lambda: nn.ReLU6(),
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.75),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "hardswish": lambda: nn.Hardswish(),
    "prelu": lambda: seeded(nn.PReLU(4)),
    "abs and neg": lambda: Step(lambda x: -x.abs() + 0.5),
    "clamp": lambda: Step(lambda x: x.clamp(-0.5, 0.25).clamp(max=0.2).clamp(min=-0.4)),
    "min and max": lambda: Step(lambda x: torch.maximum(x, torch.minimum(x.flip(1), x * 2))),
    "max of channels": lambda: Step(lambda x: x - x.amax(1, keepdim=True) + x.min(1)[0][:, None]),
    "sum and mean": lambda: Step(lambda x: x - x.mean(1, True) + x.sum(1).unsqueeze(1)),
    "max pooling": lambda: nn.MaxPool2d(3, 1, 1),
    "max pooling padded": lambda: Step(
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), "circular"), 3, 1)
    ),
    "max pooling of a channel": lambda: Step(
        lambda x: x * (F.max_pool2d(x[:, 3], 3, 1, 1) > 0.1).unsqueeze(1)
    ),
    "min pooling": lambda: Step(lambda x: -F.max_pool2d(-x, 3, 1, 1)),
    "average pooling": lambda: nn.AvgPool2d(3, 1, 1),
    "comparisons": lambda: Step(
        lambda x: torch.stack(
            [x[:, 0] < 0, x[:, 1] >= 0.5, x[:, 2] <= x[:, 3], x[:, 0] != 0], 1
        ).to(x.dtype)
    ),
    "logic": lambda: Step(
        lambda x: torch.cat(
            [
                ((x[:, :1] > 0) & ~(x[:, 1:2] > 0)).float(),
                torch.logical_or(x[:, 2:3] > 0, x[:, :1] > 1) * 1.0,
                torch.logical_xor(x[:, 2:3] > 0, x[:, :1] > 0) * x[:, :1],
                torch.logical_not(x[:, 3:].bool()).to(x),
            ],
            1,
        )
    ),
    "where": lambda: Step(lambda x: torch.where(x[:, :1] > 0, x, -0.5 * x)),
    "masked fill": lambda: Step(lambda x: x.masked_fill(x[:, :1] > 0, 0.5)),
    "batch norm": lambda: nn.Sequential(
        layer(4, 6, 3, padding=1), seeded(nn.BatchNorm2d(6)), nn.ReLU(), layer(6, 4, 1)
    ),
    "dropout": lambda: nn.Sequential(layer(4, 4, 1), nn.Dropout(0.5), nn.Dropout2d(0.5)),
    "square": lambda: Step(lambda x: x**2 - x.square() * 0.5 + x**3 / 8),
    "scaled": lambda: Step(lambda x: (3 - x / 4) * 0.1 - 2),
    "sign and floor": lambda: Step(lambda x: torch.sign(x) * torch.floor(x.clamp(-2, 2))),
    "round and ceil": lambda: Step(lambda x: x.clamp(-2, 2).round() - x.clamp(-1, 1).ceil()),
    "product of channels": lambda: Step(lambda x: x + x.prod(1, keepdim=True)),
    "lerp": lambda: Step(lambda x: torch.lerp(x, x.flip(1), 0.25)),
    "roll": lambda: Step(lambda x: x.roll(1, 2) - x.roll((-1, 1), (2, 3)) + x.roll(1, 1)),
    "in place": lambda: Step(in_place),
    "cut and joined": lambda: Step(
        lambda x: (
            torch.cat([*x.chunk(2, 1)[::-1]], 1)
            + torch.cat([x[:, 3:], x[:, :3]], 1)
            + torch.stack(x.unbind(1)[::-1], 1)
            + torch.cat(x.split([1, 3], 1)[::-1], 1)
        )
    ),
    "constants": lambda: Step(
        lambda x: (
            torch.cat([x[:, :2] + torch.ones_like(x[:, :2]), torch.zeros_like(x[:, :2])], 1)
            + torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
            + x.new_ones(x.shape)
        )
    ),
    "no grad": lambda: Step(no_grad),
}

MATRIX = torch.arange(16.0).reshape(4, 4) / 16 - 0.4
lin = seeded(nn.Linear(4, 4)).requires_grad_(False)


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        alive = F.max_pool2d(x[:, :1], 3, 1, 1) > 0
    return x * alive


@pytest.mark.parametrize("name", STEPS)
def test_a_graph_computes_what_the_module_does(name: str) -> None:
    module = STEPS[name]().eval()
    traced = trace(module, 4)
    generator = torch.Generator().manual_seed(1)
    for size in ((5, 8), (3, 3)):
        state = torch.randn(2, 4, *size, generator=generator)
        expected = module(state.clone())
        assert torch.allclose(run(traced, state), expected, atol=1e-5), name
        assert expected.std() > 0
    assert traced.difference < 1e-4
    for index, (weight, *_) in traced.weights().items():  # what is now is what the graph holds
        operation: Any = traced.graph.operations[index]
        own = operation.weight if isinstance(operation, Linear) else operation.values
        assert torch.allclose(weight.double(), torch.as_tensor(own, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["Tanh", "Sigmoid", "SiLU", "GELU", "Softplus", "ELU", "SELU", "Mish"]
)
def test_smooth_functions_are_lines_within_the_stated_error(name: str) -> None:
    function = getattr(nn, name)()
    state = torch.linspace(-20, 20, 4001).reshape(1, 1, 1, -1)
    errors = []
    for lines in (4, 12):
        traced = trace(nn.Sequential(function), 1, lines=lines)
        (error,) = traced.approximations.values()
        found = (run(traced, state) - function(state)).abs().max()
        assert found <= error + 1e-4
        errors.append(error)
    assert errors[1] < errors[0] / 3 and errors[1] < 0.008


def test_a_growing_automaton() -> None:
    traced = trace(seeded(GrowingNCA(6, 20)), 6)
    assert kinds(traced.graph) == [
        *("Channel", "Constant", "Constant", "Constant", "Window", "Less", "Linear", "Linear"),
        *("Maximum", "Linear", "Random", "Less", "Select", "Add", "Window", "Less", "Minimum"),
        "Select",
    ]
    assert traced.graph.random_bits == 1
    assert traced.graph.borders == ("replicate", "zero")
    line = line_of("F.max_pool2d(state[:, 3:4]", Path(inspect.getfile(GrowingNCA)))
    assert traced.places[4].endswith(f"module.py:{line}")
    assert traced.graph.name(traced.graph.words(7)[2]) == "hidden 2"


def line_of(text: str, file: Path) -> int:
    lines = file.read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_weights_are_differentiable_and_follow_the_module() -> None:
    module = nn.Sequential(layer(4, 4, 3, padding=1), seeded(nn.BatchNorm2d(4)), nn.Tanh()).eval()
    traced = trace(module, 4, lines=40)
    state = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.7).add_(0.01)
    found = run(traced, state)
    assert (found - module(state)).abs().max() < max(traced.approximations.values()) + 1e-5
    found[:, 1].square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    module(state)[:, 1].square().sum().backward()
    for mine, parameter in zip(gradients, module.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=0.05, atol=0.05)
        assert mine.abs().max() > 0


def test_functions_of_parameters_are_computed_as_they_are() -> None:
    class Diffusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor([-1.0, 0.5, 0.0, 2.0]))
            self.coupling = nn.Parameter(MATRIX.clone())

        def forward(self, x: Tensor) -> Tensor:
            rate = F.softplus(self.rate).view(1, -1, 1, 1)
            symmetric = (self.coupling + self.coupling.T) / 2
            x = x - rate * torch.einsum("oi,bihw->bohw", torch.tanh(symmetric), x)
            return torch.tanh(x)

    module = Diffusing()
    traced = trace(module, 4, lines=16)
    assert list(traced.approximations) == ["tanh_1: tanh"]
    sum(one.sum() for numbers in traced.weights().values() for one in numbers).backward()
    assert module.rate.grad is not None and (module.coupling.grad != 0).any()


def test_batch_norm_and_factors_go_into_the_weights() -> None:
    module = nn.Sequential(layer(4, 4, 3, padding=1), seeded(nn.BatchNorm2d(4))).eval()
    traced = trace(Step(lambda x: x + module(x) * 0.125 - 1), 4)
    assert kinds(traced.graph).count("Linear") == 1
    assert "Multiply" not in kinds(traced.graph)


@pytest.mark.parametrize(
    ("fires", "bits", "share"),
    [
        (lambda x: torch.rand_like(x[:, :1]) < 0.5, 1, 0.5),
        (lambda x: torch.rand_like(x[:, :1]) >= 0.25, 2, 0.75),
        (lambda x: torch.rand_like(x[:, :1]) > 0.75, 2, 0.25),
        (lambda x: (torch.rand_like(x[:, :1]) + 0.375).floor(), 3, 0.375),
        (lambda x: 1 - torch.rand_like(x[:, :1]) < 0.125, 3, 0.125),
        (lambda x: torch.rand_like(x[:, :1]) < 0.1, 8, 26 / 256),
        (lambda x: torch.bernoulli(torch.full_like(x[:, :1], 0.5)), 1, 0.5),
        (lambda x: torch.bernoulli(x[:, :1].clamp(0.5, 0.5)), 8, 0.5),
        (lambda x: torch.randint(0, 2, x[:, :1].shape), 1, 0.5),
        (lambda x: torch.randint(0, 4, x[:, :1].shape) > 2, 2, 0.25),
        (lambda x: torch.randint(0, 4, x[:, :1].shape) == 2, 2, 0.25),
        (lambda x: torch.empty_like(x).bernoulli_(0.25), 2, 0.25),
        (lambda x: torch.empty_like(x).uniform_(-1, 1) < 0.5, 2, 0.75),
        (lambda x: torch.rand(x.shape[2] * x.shape[3]).view(x.shape[2:]) < 0.5, 1, 0.5),
        (lambda x: torch.rand(x.shape[0], 1, x.shape[2], x.shape[3]) * 2 - 1, 8, None),
        (lambda x: torch.rand(x.shape[2:]) < 0.5, 1, 0.5),
        (lambda x: (torch.rand(x.shape) > 0) * (torch.rand(x.shape) < 0.25), 2, 0.25),
        (lambda x: (torch.rand(x.shape) < 0.25) * (1 - torch.rand(x.shape) <= 1), 2, 0.25),
    ],
)
def test_random_numbers(fires: Callable[[Tensor], Tensor], bits: int, share: float | None) -> None:
    traced = trace(Step(lambda x: x * 0 + fires(x)), 1)
    assert traced.graph.random_bits == bits
    state = torch.zeros(1, 1, 200, 200)
    interpreter = Interpreter(traced.graph)
    found = interpreter(state, noise=interpreter.draw(state, torch.Generator().manual_seed(0)))
    if share is None:
        assert -1 <= found.min() < -0.98 and 0.98 < found.max() < 1
    else:
        assert set(found.unique().tolist()) == {0, 1}
        assert abs(float(found.mean()) - share) < 0.01


def test_arguments_are_inputs_random_or_constant() -> None:
    class Watching(nn.Module):
        def watch(
            self, state: Tensor, sample: Tensor, fired: Tensor, noise: Tensor, *, gain: float = 1.0
        ) -> tuple[int, Tensor]:
            seen = sample[:, :1] - 2 * sample[:, 1:] + noise
            return 0, torch.where(fired > 0, state + gain * seen, state)

    traced = trace(
        Watching(),
        ["light", "dark"],
        inputs={"sample": 2},
        random={"fired": 0.25, "noise": None},
        constants={"gain": 3.0},
        method="watch",
        output=1,
    )
    graph = traced.graph
    assert list(graph.channels) == ["light", "dark"]
    assert list(graph.inputs) == ["sample0", "sample1"]
    assert [one.bits for _, one in graph.of_kind(Random)] == [(2,), (8,)]
    state = torch.ones(1, 2, 3, 3)
    inputs = {"sample0": state[:, 0], "sample1": state[:, 0] * 0.5}
    noise = torch.full((1, 2, 3, 3), 0.125)
    noise[:, 0, 0] = 0.25
    found = Interpreter(graph)(state, inputs, noise)
    assert (found[:, :, 0] == 1).all() and (found[:, :, 1:] == 1.375).all()


def test_channels_may_be_last_and_named_by_the_module() -> None:
    class Last(nn.Module):
        channel_names = ("a", "b", "c")

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            y = x.transpose(1, 3)
            y = F.conv2d(y, KERNEL.expand(3, 1, 3, 3), padding=1, groups=3)
            return y.transpose(1, 3) + other

    traced = trace(Last(), layout="BHWC")
    assert list(traced.graph.channels) == ["a", "b", "c"]
    state, other = torch.randn(2, 3, 4, 6), torch.randn(2, 1, 4, 6)
    found = Interpreter(traced.graph)(state, {"other": other[:, 0]})
    expected = Last()(state.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1))
    assert torch.allclose(found, expected.permute(0, 3, 1, 2), atol=1e-6)


def test_a_mask_selects_and_does_not_multiply() -> None:
    traced = trace(Step(lambda x: x * (x[:, :1] > 0).float()), 4)
    assert not list(traced.graph.of_kind(Multiply))


def test_what_is_not_read_is_not_in_the_graph() -> None:
    wide = layer(4, 8, 1)
    traced = trace(Step(lambda x: (wide(x)[:, ::2], F.max_pool2d(x, 3, 1, 1))[0]), 4)
    assert not list(traced.graph.of_kind(Window))
    assert traced.graph.operations[1].count == 4


def test_channels_that_do_not_change_are_not_computed() -> None:
    """As those of an image that is segmented."""
    first, second = layer(4, 8, 3, padding=1), layer(8, 4, 1)

    def step(x: Tensor) -> Tensor:
        change = second(F.relu(first(x)))
        change = change * (torch.rand_like(x[:, :1]) < 0.5).float()
        change[:, :3] *= 0
        return x + change

    graph = trace(Step(step), 4).graph
    assert graph.outputs[:3] == tuple(graph.channels.values())[:3]
    assert graph.operations[-1].count == 1
    assert [graph.operations[i].count for i, _ in graph.of_kind(Linear)] == [8, 1]


def test_the_module_keeps_its_mode_and_its_weights() -> None:
    module = nn.Sequential(layer(4, 4, 1), nn.BatchNorm2d(4))
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trace(module, 4)
    assert module.training and module[0].training and not module[1].training
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())


CONFIGS = [
    {"kind": "gated"},
    {"kind": "residual"},
    {"perception": "depthwise"},
    {"perception": "sobel", "border": "replicate"},
    {"border": "wrap", "fire_rate": 0.5},
    {"inputs": ("sample", "trace", "valid", "fresh", "flicker", "innovation", "trust", "recall")},
    {"block": 2},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_the_scotopic_rule(options: dict[str, Any]) -> None:
    config = RuleConfig(channels=6, hidden=8, **options)
    rule = seeded(Rule(config))
    pixels = config.pixels
    traced = trace(
        rule,
        list(config.channel_names),
        inputs={"sample": pixels, "valid": pixels} | ({"fired": 1} if config.fire_rate < 1 else {}),
    )
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(2, len(config.channel_names), 5, 6, generator=generator) * 2 - 1
    state[:, -pixels:].abs_()
    state[:, -pixels:, 0] = 0
    given = {"sample": torch.rand(2, pixels, 5, 6, generator=generator) * 2 - 1}
    for name in ("valid", "fired"):
        planes = pixels if name == "valid" else 1
        drawn = torch.rand(2, planes, 5, 6, generator=generator) < 0.5
        given[name] = drawn.float()
    if config.fire_rate == 1:
        del given["fired"]
    words = {
        word: tensor[:, i]
        for name, tensor in given.items()
        for i, word in enumerate(
            [name] if tensor.shape[1] == 1 else [f"{name}{k}" for k in range(tensor.shape[1])]
        )
    }
    found = Interpreter(traced.graph)(state, words, weights=traced.weights())
    assert torch.allclose(found, rule(state, **given), atol=1e-5)
