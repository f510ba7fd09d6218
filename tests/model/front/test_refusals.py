"""Modules that are refused: in one line, with the user's file and line."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.model.front import trace

HERE = str(Path(__file__))


class Step(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def refused(module: nn.Module, channels: int = 4, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        trace(module, channels, **options)
    (line,) = str(caught.value).splitlines()
    return line


GRID_RANDOM = torch.rand(1, 1, 31, 37)

LOCAL = [
    (lambda x, n: n(x), [nn.GroupNorm(2, 4)], "group_norm divides by a spread"),
    (lambda x, n: n(x), [nn.InstanceNorm2d(4)], "instance_norm divides by a spread"),
    (
        lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        [nn.LayerNorm(4)],
        "layer_norm divides by a spread",
    ),
    (lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real, [], "is a transform of the whole grid"),
    (
        lambda x: x - F.adaptive_avg_pool2d(x, 1),
        [],
        "adaptive_avg_pool2d takes all cells together",
    ),
    (lambda x: x - x.mean((2, 3), keepdim=True), [], "mean takes the whole grid together"),
    (lambda x: x / x.amax(), [], "amax takes the whole grid together"),
    (lambda x, c: c(x), [nn.Conv2d(4, 4, 5, padding=2)], "conv2d has 5x5 kernels: use 3x3"),
    (
        lambda x, c: c(x),
        [nn.Conv2d(4, 4, 3, padding=2, dilation=2)],
        "conv2d has 3x3 kernels, dilation 2: use 3x3",
    ),
    (
        lambda x, c: F.interpolate(c(x), x.shape[2:]),
        [nn.Conv2d(4, 4, 3, stride=2, padding=1)],
        "conv2d has 3x3 kernels, stride 2: use 3x3",
    ),
    (
        lambda x, c: F.pad(c(x), (1, 1, 1, 1)),
        [nn.Conv2d(4, 4, 3)],
        "conv2d changes the grid's size: 3 cells wide with a padding of 0: pad 3x3",
    ),
    (lambda x: F.max_pool2d(x, 5, 1, 2), [], "max_pool2d pools 5 cells at stride 1: pool 3x3"),
    (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), [], "fewer cells at the border"),
    (lambda x: torch.softmax(x, 1), [], "softmax divides, and takes exponentials"),
    (lambda x: x / x.abs().clamp(min=1), [], "div divides by what the cells hold: multiply"),
    (lambda x: torch.exp(x), [], "exp is a function that sums, products and comparisons do not"),
    (lambda x: torch.floor(x), [], "floor rounds a number of any size: clamp it first"),
    (lambda x: F.dropout(x, 0.5, True), [], "dropout drops out at random: compare torch.rand"),
    (lambda x: x + torch.randn_like(x), [], "randn_like draws what is not uniform"),
    (lambda x: x + torch.randn(x.shape), [], "randn draws what is not uniform"),
    (lambda x: x + torch.rand(x.shape[0], 1, 1, 1), [], "draws the same number for many cells"),
    (lambda x: x.roll(2, 2), [], "roll moves the grid by 2 cells: give each cell what its 3x3"),
    (lambda x: x + x.argmax(1, keepdim=True), [], "argmax gives the number of a channel"),
    (lambda x: x.reshape(x.shape[0], 4, -1, x.shape[2]), [], "regroups the grid's cells"),
    (lambda x: x + GRID_RANDOM, [], "add reads a constant tensor that differs from cell to cell"),
    (lambda x: x.flip(2), [], "flip works along the rows, not on channels alone"),
    (lambda x: torch.erfinv(x), [], "erfinv is a function that"),
    (lambda x: x.half().float(), [], "rounds to torch.float16: leave rounding to the quantizer"),
    (lambda x: x.cumsum(1), [], "cumsum orders or adds up one after the other: write out the sums"),
    (lambda x: x[torch.where(x > 0)], [], "where asks what the state holds: use torch.where"),
    (lambda x: torch.special.bessel_j0(x), [], "is no operation that a step graph has"),
    (lambda x: F.pad(x, (2, 2, 2, 2))[:, :, 2:-2, 2:-2], [], "pad pads 2 and 2 cells"),
    (
        lambda x: F.gelu(x) * F.softplus(x, threshold=2),
        [],
        "softplus has arguments {'threshold': 2",
    ),
]


@pytest.mark.parametrize(("step", "layers", "said"), LOCAL, ids=[said for *_, said in LOCAL])
def test_operations(step: Callable[..., Tensor], layers: list[nn.Module], said: str) -> None:
    line = refused(Step(step, *layers))
    assert said in line
    assert line.startswith(f"{HERE}:{step.__code__.co_firstlineno}: ")
    assert len(line.removeprefix(HERE)) < 300 and ": " in line.partition(said)[2] + said


def test_a_branch_on_the_state() -> None:
    def step(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x

    line = refused(Step(step))
    assert line == (
        f"{HERE}:{step.__code__.co_firstlineno + 1}: Step.forward branches on what the cells hold, "
        "or takes a number out of them: use torch.where, or a mask; all cells do the same"
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda x: x[:, :3], "Step.forward returns 3 channels of 4: return the whole next state"),
        (
            lambda x: x.transpose(2, 3),
            "Step.forward returns 7x4x37x31 for a state of 7x4x31x37: return the next state, of "
            "the same shape",
        ),
        (lambda x: torch.zeros(3), "Step.forward returns no state: return a tensor like its first"),
        (lambda x: (x, x), "Step.forward returns 2 tensors: say which is the state, by output"),
        (
            lambda x: x / x.shape[2],
            "for 7x11 cells: its step may not depend on the grid's size",
        ),
        (lambda x: x * float("nan"), "returns nan for a state of random numbers up to 0.2: mend"),
        (
            lambda x: x + random.random(),
            "for 31x37 cells: it reads what is neither state, parameter nor argument",
        ),
        (lambda x: x.view(7, 4, 31, 37), "fails on 31x37 cells (shape '[7, 4, 31, 37]' is invalid"),
        (lambda x: x @ torch.zeros(5, 5), "cannot be traced with tensors of 7x4x31x37 ("),
        (lambda x: x.cuda(), "cannot be traced with tensors of 7x4x31x37 ("),
    ],
)
def test_steps(step: Callable[[Tensor], Any], said: str) -> None:
    assert said in refused(Step(step))


def test_a_difference_is_found() -> None:
    class Changing(nn.Module):
        """Does something else when it is run than when it is taken apart."""

        def forward(self, x: Tensor) -> Tensor:
            return x if torch.compiler.is_exporting() else x * 1.01

    assert "Changing.forward differs from its graph by" in refused(Changing())


def test_a_state_beside_the_channels() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("age", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.age += 1
            return x + self.age

    assert refused(Counting()) == (
        "Counting.forward writes to age, which the next step would read: make it a channel of the "
        "state"
    )


class Named(nn.Module):
    def forward(self, x: Tensor, sample: Tensor, steps: int = 1) -> Tensor:
        return x + sample


@pytest.mark.parametrize(
    ("channels", "options", "said"),
    [
        (None, {}, "Named has no channel_names: say how many channels its state has"),
        (0, {}, "Named has a state of no channels: give it one or more"),
        (4, {"method": "step"}, "Named has no method step: name the one that does a step"),
        (4, {"layout": "HWC"}, "layout 'HWC' is unknown: choose BCHW or BHWC"),
        (
            4,
            {"inputs": {"light": 1}},
            "inputs names light, which is no argument of Named.forward: it has sample, steps",
        ),
        (
            4,
            {"inputs": {"sample": 1}, "random": {"sample": 0.5}},
            "argument sample is named twice: say once what it is",
        ),
    ],
)
def test_calls(channels: int | None, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        trace(Named(), channels, **options)
    assert str(caught.value) == said
