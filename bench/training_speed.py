"""Training's cell updates a second, against a plain PyTorch loop: python bench/training_speed.py

Both train the rule of the preset `retina` on the same videos: a chunk forward, then backward. They
take turns, so that whatever else the machine does slows both; what is printed are medians of
rounds. Beside them stands a large matrix product, about as fast as this processor multiplies: it
tells how much is left to win.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.model import native
from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions
from scotopia.model.presets import PRESETS
from scotopia.model.rule import Rule
from scotopia.model.unroll import unroll

#: Side of the square matrices that tell how fast this processor multiplies.
SIDE = 1024

Loop = Callable[[Rule, Tensor, Tensor, Tensor], Tensor]


def plain_loop(rule: Rule, state: Tensor, samples: Tensor, valids: Tensor) -> Tensor:
    """Unroll the preset's rule as one would who has PyTorch and no more: (B, T, 1, H, W)."""
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
    return torch.stack(predictions, 1)


def fused_loop(rule: Rule, state: Tensor, samples: Tensor, valids: Tensor) -> Tensor:
    """Unroll a rule as training does."""
    return unroll(rule, state, samples, valids)[0]


LOOPS: dict[str, Loop] = {"plain": plain_loop, "scotopia": fused_loop}


@dataclass(frozen=True)
class Work:
    """A rule, and a chunk of made-up videos to train it on; shapes as `fused.unroll` has them."""

    rule: Rule
    state: Tensor
    samples: Tensor
    valids: Tensor
    truth: Tensor

    @classmethod
    def draw(cls, config: RuleConfig, options: TrainOptions) -> "Work":
        """Draw it from a fixed seed."""
        torch.manual_seed(0)
        rule = Rule(config)
        side = options.crop
        truth = 2 * torch.rand(options.batch, options.chunk, 1, side, side) - 1
        valids = (torch.rand_like(truth) < 0.01).float()
        state = rule.initial_state(options.batch, side, side)
        return cls(rule, state, truth * valids, valids, truth)

    @property
    def updates(self) -> int:
        """Cell updates of the chunk."""
        return self.truth.numel() * self.rule.config.steps_per_frame

    def forward(self, loop: Loop) -> Tensor:
        """Predict, keeping nothing for a gradient."""
        with torch.no_grad():
            return loop(self.rule, self.state, self.samples, self.valids)

    def forward_and_backward(self, loop: Loop) -> list[Tensor]:
        """Return the gradient of the dense loss."""
        self.rule.zero_grad()
        predictions = loop(self.rule, self.state, self.samples, self.valids)
        (predictions - self.truth).square().mean().backward()  # type: ignore[no-untyped-call]
        return [weights.grad for weights in self.rule.parameters() if weights.grad is not None]

    def check(self) -> None:
        """Compare both loops' predictions and gradients.

        Raises
        ------
        AssertionError
            If they differ by more than 1e-4, gradients relative to the largest of their layer.
        """
        a, b = (self.forward(loop) for loop in LOOPS.values())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        gradients = [self.forward_and_backward(loop) for loop in LOOPS.values()]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(a.abs().max()))


def measure(work: Work, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each round, by what is done and by loop."""
    tasks = {"forward": work.forward, "forward and backward": work.forward_and_backward}
    matrix = torch.rand(SIDE, SIDE)
    runs: dict[tuple[str, str], Callable[[], object]] = {
        (task, name): partial(do, loop)
        for task, do in tasks.items()
        for name, loop in LOOPS.items()
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


def main() -> None:
    """Print a table for one thread and one for all cores."""
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
    work = Work.draw(preset.config, options)
    work.check()
    cores = len(os.sched_getaffinity(0))
    print(
        f"rule of {work.rule.parameter_count} parameters, {options.batch} videos of "
        f"{options.crop} x {options.crop} pixels and {options.chunk} frames, "
        f"{work.rule.config.steps_per_frame} steps a frame; median of {arguments.rounds} rounds "
        "(fastest to slowest)"
    )
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        load = os.getloadavg()[0]
        seconds = measure(work, arguments.rounds)
        print(f"\n{threads} thread{'s' * (threads > 1)}; load of the machine before: {load:.1f}")
        print(f"{'million cell updates a second':30}{'plain':>22}{'scotopia':>22}   ratio")
        for task in ("forward", "forward and backward"):
            line = f"{task:30}"
            for name in LOOPS:
                rates = sorted(work.updates / s / 1e6 for s in seconds[task, name])
                spread = f"({rates[-1]:.2f} to {rates[0]:.2f})"
                line += f"{statistics.median(rates):7.2f} {spread:>14}"
            # Of neighbours in time, so that both had the same share of the machine.
            pairs = zip(seconds[task, "plain"], seconds[task, "scotopia"], strict=True)
            print(f"{line}   {statistics.median(a / b for a, b in pairs):.1f}x")
        products = SIDE**3 / statistics.median(seconds["", "matrix product"])
        # Backward multiplies twice as much as forward: for the weights, and for what they read.
        for task, times in (("forward", 1), ("forward and backward", 3)):
            done = work.updates * work.rule.config.macs * times
            share = done / statistics.median(seconds[task, "scotopia"]) / products
            print(f"{task}: {share:.0%} of the multiplications a second of a matrix product")


if __name__ == "__main__":
    main()
