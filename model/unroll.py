"""The rule unrolled over a chunk of frames: what training differentiates."""

import torch
from torch import Tensor

from . import compiled, native
from .rule import Rule


def unroll(
    rule: Rule,
    state: Tensor,
    samples: Tensor,
    valids: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `steps_per_frame` steps in each frame of a chunk.

    On a CPU with a C++ compiler that works by what is `compiled` for the rule's step graph;
    elsewhere by PyTorch's own operators: same numbers up to the order of sums.

    Parameters
    ----------
    state
        (B, C, H, W) before the chunk. No gradient flows into it.
    samples, valids
        (B, T, P, H, W), as `Rule.forward` reads them frame by frame.
    generator
        Draws which cells fire, if the rule's `fire_rate` is below 1, and its dither.

    Returns
    -------
    predictions
        (B, T, P, H, W) after each frame, differentiable in the rule's parameters.
    state
        (B, C, H, W) after the chunk, without gradient.
    """
    samples = rule.sense(samples)
    fired = draw_fired(rule, samples, generator)
    dither = draw_dither(rule, samples, generator)
    if samples.device.type == "cpu" and native.available():
        try:
            return unroll_compiled(rule, state, samples, valids, fired, dither)
        except compiled.NotCompiled:
            pass
    return unroll_plainly(rule, state.detach(), samples, valids, fired, dither)


def unroll_compiled(
    rule: Rule,
    state: Tensor,
    samples: Tensor,
    valids: Tensor,
    fired: Tensor | None = None,
    dither: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do it by the compiled step of a rule's graph.

    Raises
    ------
    NotCompiled
        If the compiler fails.
    """
    graph, config = rule.graph, rule.config
    planes = [*samples.unbind(2), *valids.unbind(2)]
    return compiled.unroll(
        graph,
        rule.weights(),
        state,
        dict(zip(graph.inputs, planes, strict=True)),
        steps_per_frame=config.steps_per_frame,
        noise=rule.noise(fired, dither),
        channels=range(config.pixels),
    )


def draw_fired(rule: Rule, samples: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Draw which cells update, (B, T * steps, 1, H, W); None if all do."""
    if rule.config.fire_rate == 1:
        return None
    videos, frames, _, height, width = samples.shape
    shape = (videos, frames * rule.config.steps_per_frame, 1, height, width)
    chance = torch.rand(shape, generator=generator)
    return (chance < rule.config.fire_rate).float().to(samples.device)


def draw_dither(rule: Rule, samples: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Draw what is added below last bits, (B, T * steps, 1, H, W) in [0, 1); None if nothing."""
    if rule.dither == 0:
        return None
    videos, frames, _, height, width = samples.shape
    shape = (videos, frames * rule.config.steps_per_frame, 1, height, width)
    levels = 1 << rule.dither
    drawn = torch.randint(levels, shape, generator=generator, dtype=torch.uint8)
    return drawn.to(samples) / levels


def unroll_plainly(
    rule: Rule,
    state: Tensor,
    samples: Tensor,
    valids: Tensor,
    fired: Tensor | None = None,
    dither: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do it as one would write it down: the reference that `compiled` is compared with."""
    predictions = []
    for t in range(samples.shape[1]):
        for step in range(rule.config.steps_per_frame):
            i = t * rule.config.steps_per_frame + step
            mask = None if fired is None else fired[:, i]
            noise = () if dither is None else (dither[:, i],)
            state = rule(state, samples[:, t], valids[:, t], mask, *noise)
        predictions.append(state[:, : rule.config.pixels])
    return torch.stack(predictions, 1), state.detach()
