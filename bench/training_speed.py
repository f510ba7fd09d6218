"""Training's cell updates a second, against a plain PyTorch loop: python bench/training_speed.py

Of the rule of the preset `retina`, of the same for integers of 8 bits (there the plain loop is its
graph in PyTorch), and of a Growing NCA (Mordvintsev et al., 2020: 16 channels of which 48 are
perceived, 128 hidden neurons, 40 x 40 cells). All loops do the same work: a chunk
forward, then backward. They take turns, so that whatever else the machine does slows all; what is
printed are medians of rounds. Beside them stands a large matrix product, about as fast as this
processor multiplies: it tells how much is left to win.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.graph.build import Builder
from scotopia.graph.operations import Linear
from scotopia.graph.step import StepGraph
from scotopia.model import compiled, native
from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions
from scotopia.model.presets import PRESETS
from scotopia.model.rule import Rule
from scotopia.model.unroll import unroll_compiled, unroll_plainly
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.formats import Formats, Precision, unsigned_format

#: Side of the square matrices that tell how fast this processor multiplies.
SIDE = 1024

#: Channels and hidden neurons of the Growing NCA, and its filters of each channel.
CHANNELS, HIDDEN = 16, 128
SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
FILTERS = torch.stack([torch.eye(3)[1] * torch.eye(3)[1][:, None], SOBEL, SOBEL.T])


def plain_loop(rule: Rule, state: Tensor, samples: Tensor, valids: Tensor) -> tuple[Tensor, Tensor]:
    """Unroll the preset's rule as one would who has PyTorch and no more, as `unroll` does."""
    config = rule.config
    perceive, update = rule.perceive, rule.update
    x, last, trace = state[:, :-2], state[:, -2:-1], state[:, -1:]
    tick = 2.0**-config.trace_bits
    predictions = []
    for t in range(samples.shape[1]):
        sample, valid = samples[:, t], valids[:, t]
        for _ in range(config.steps_per_frame):
            fresh = valid * (trace < 1 - tick)
            flicker = (valid * (trace > 0) * (sample - last)).clamp(-1, 1)
            last = torch.where(valid > 0, sample, last)
            trace = torch.where(valid > 0, 1 - tick, (trace - tick).clamp(min=0))
            error = last - x[:, :1]
            recent = trace + (8 * trace - 7).clamp(min=0) + 2 * (64 * trace - 63).clamp(min=0)
            trust = (recent - 4 * x[:, 1:2]).clamp(0, 1)
            innovation, recall = (valid * error).clamp(-1, 1), (trust * error).clamp(-1, 1)
            seen = torch.cat([x, fresh, flicker, innovation, trust, recall], 1)
            seen = F.pad(seen, (1, 1, 1, 1), mode="replicate")
            hidden = F.conv2d(seen, perceive.weight, perceive.bias).relu()
            candidate, gate = F.conv2d(hidden, update.weight, update.bias).chunk(2, 1)
            gate = (0.5 + 0.25 * gate).clamp(0, 1)
            x = x + gate * (candidate.clamp(-1, 1) - x)
        predictions.append(x[:, :1])
    return torch.stack(predictions, 1), torch.cat([x, last, trace], 1)


@dataclass(frozen=True)
class Work:
    """What is to be trained, by several loops.

    Attributes
    ----------
    loops
        Each returns what is compared with `truth`; by name, the plain one first.
    parameters
        That are trained.
    updates, macs
        Cell updates of the chunk, and multiply-accumulates of each.
    """

    name: str
    loops: Mapping[str, Callable[[], Tensor]]
    parameters: list[Tensor]
    truth: Tensor
    updates: int
    macs: int

    def forward(self, loop: str) -> Tensor:
        """Predict, keeping nothing for a gradient."""
        with torch.no_grad():
            return self.loops[loop]()

    def forward_and_backward(self, loop: str) -> list[Tensor]:
        """Return the gradient of the squared error."""
        error = self.loops[loop]() - self.truth
        return list(torch.autograd.grad(error.square().mean(), self.parameters))

    def check(self) -> None:
        """Compare all loops' predictions and gradients with the first one's.

        Raises
        ------
        AssertionError
            If they differ by more than 1e-4, gradients relative to the largest of their layer.
        """
        plain, *others = self.loops
        expected, gradients = self.forward(plain), self.forward_and_backward(plain)
        for loop in others:
            torch.testing.assert_close(self.forward(loop), expected, rtol=0, atol=1e-4)
            for a, b in zip(gradients, self.forward_and_backward(loop), strict=True):
                torch.testing.assert_close(b, a, rtol=0, atol=1e-4 * float(a.abs().max()))


def retina(config: RuleConfig, options: TrainOptions, *, quantized: bool = False) -> Work:
    """Draw a rule that sees what the preset's does, and videos, from a fixed seed."""
    torch.manual_seed(0)
    rule = Rule(config)
    if quantized:
        hidden = [unsigned_format(4.0, 8)] * config.hidden
        rule = FakeQuantRule(rule, Formats.choose(rule, hidden, Precision(), scales="kernel"))
    side = options.crop
    truth = 2 * torch.rand(options.batch, options.chunk, 1, side, side) - 1
    valids = (torch.rand_like(truth) < 0.01).float()
    shown = rule.initial_state(options.batch, side, side), rule.sense(truth * valids), valids
    plain = unroll_plainly if quantized else plain_loop
    return Work(
        f"{'fake-quantized ' * quantized}rule of {rule.parameter_count} parameters, "
        f"{options.batch} videos of {side} x {side} pixels and {options.chunk} frames, "
        f"{config.steps_per_frame} steps a frame",
        {
            "plain": lambda: plain(rule, *shown)[0],
            "compiled": lambda: unroll_compiled(rule, *shown)[0],
        },
        list(rule.parameters()),
        truth,
        truth.numel() * config.steps_per_frame,
        config.macs,
    )


def growing_graph() -> StepGraph:
    """Write the step of a Growing NCA down, with filters that are fixed."""
    build = Builder()
    x = build.channels({f"x{i}": None for i in range(CHANNELS)})
    filters = np.zeros((CHANNELS, 3, CHANNELS, 9))
    filters[np.arange(CHANNELS), :, np.arange(CHANNELS)] = FILTERS.flatten(1).numpy()
    seen = build.linear(x, filters.reshape(-1, CHANNELS, 9), np.zeros(3 * CHANNELS))
    hidden = build.linear(seen, np.ones((HIDDEN, 3 * CHANNELS, 1)), np.ones(HIDDEN)).maximum(0)
    update = build.linear(hidden, np.ones((CHANNELS, HIDDEN, 1)), np.ones(CHANNELS))
    moved = x + build.where(build.random(8) < 0.5, update, 0.0)
    alive = (build.window(x[3]) > 0.1).minimum(build.window(moved[3]) > 0.1)
    after = build.where(alive, moved, 0.0)
    return build.graph({f"x{i}": after[i] for i in range(CHANNELS)})


def growing(batch: int, side: int, steps: int) -> Work:
    """Draw a Growing NCA, and grids that are alive, from a fixed seed."""
    torch.manual_seed(0)
    shapes = (HIDDEN, 3 * CHANNELS, 1), (HIDDEN,), (CHANNELS, HIDDEN, 1), (CHANNELS,)
    parameters = [(0.05 * torch.randn(shape)).requires_grad_() for shape in shapes]
    weight, bias, update_weight, update_bias = parameters
    start = torch.rand(batch, CHANNELS, side, side)
    drawn = torch.randint(256, (batch, steps, 1, side, side)) / 256
    graph = growing_graph()
    _, first, second = (index for index, _ in graph.of_kind(Linear))

    def plain() -> Tensor:
        x, filters = start, FILTERS.repeat(CHANNELS, 1, 1)[:, None]
        for t in range(steps):
            before = F.max_pool2d(x[:, 3:4], 3, 1, 1) > 0.1
            seen = F.conv2d(x, filters, padding=1, groups=CHANNELS)
            hidden = F.conv2d(seen, weight[..., None], bias).relu()
            update = F.conv2d(hidden, update_weight[..., None], update_bias)
            x = x + update * (drawn[:, t] < 0.5)
            x = x * (before & (F.max_pool2d(x[:, 3:4], 3, 1, 1) > 0.1))
        return x

    def generated() -> Tensor:
        weights = {first: (weight, bias), second: (update_weight, update_bias)}
        found = compiled.unroll(graph, weights, start, frames=1, steps_per_frame=steps, noise=drawn)
        return found[0][:, 0]

    return Work(
        f"Growing NCA, {batch} grids of {side} x {side} cells, {steps} steps",
        {"plain": plain, "compiled": generated},
        parameters,
        torch.ones_like(start),
        batch * steps * side**2,
        HIDDEN * 4 * CHANNELS,
    )


def measure(work: Work, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each round, by what is done and by loop."""
    tasks = {"forward": work.forward, "forward and backward": work.forward_and_backward}
    matrix = torch.rand(SIDE, SIDE)
    runs: dict[tuple[str, str], Callable[[], object]] = {
        (task, loop): partial(do, loop) for task, do in tasks.items() for loop in work.loops
    }
    runs["", "matrix product"] = partial(torch.mm, matrix, matrix)
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if number > 0:  # the first round fills caches
                seconds.setdefault(key, []).append(time.perf_counter() - start)
    return seconds


def report(work: Work, rounds: int) -> None:
    """Print a table."""
    seconds = measure(work, rounds)
    print(f"{'million cell updates a second':30}" + "".join(f"{n:>32}" for n in work.loops))
    for task in ("forward", "forward and backward"):
        line = f"{task:30}"
        for name in work.loops:
            rates = sorted(work.updates / s / 1e6 for s in seconds[task, name])
            spread = f"({rates[0]:.2f} to {rates[-1]:.2f})"
            # Of neighbours in time, so that both had the same share of the machine.
            pairs = zip(seconds[task, "plain"], seconds[task, name], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            line += f"{statistics.median(rates):8.2f} {spread:>16} {ratio:5.1f}x"
        print(line)
    products = SIDE**3 / statistics.median(seconds["", "matrix product"])
    # Backward multiplies twice as much as forward: for the weights, and for what they read.
    for task, times in (("forward", 1), ("forward and backward", 3)):
        done = work.updates * work.macs * times
        share = done / statistics.median(seconds[task, "compiled"]) / products
        print(f"{task}: {share:.0%} of the multiplications a second of a matrix product")


def main() -> None:
    """Print the tables for one thread and for all cores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    preset = PRESETS["retina"]
    given = preset.options
    parser.add_argument("--batch", type=int, default=given.batch, help="videos side by side")
    parser.add_argument("--crop", type=int, default=given.crop, help="their side, in pixels")
    parser.add_argument("--chunk", type=int, default=given.chunk, help="their frames")
    arguments = parser.parse_args()
    if not native.available():
        raise SystemExit("training_speed: there is no g++: install it, for training needs it")
    options = TrainOptions(batch=arguments.batch, crop=arguments.crop, chunk=arguments.chunk)
    cores = len(os.sched_getaffinity(0))
    for work in (
        retina(preset.config, options),
        retina(preset.config, options, quantized=True),
        growing(batch=8, side=40, steps=32),
    ):
        work.check()
        print(f"{work.name}; median of {arguments.rounds} rounds (slowest to fastest)")
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            load = os.getloadavg()[0]
            print(f"\n{threads} thread{'s' * (threads > 1)}; load before: {load:.1f}")
            report(work, arguments.rounds)
        print()


if __name__ == "__main__":
    main()
