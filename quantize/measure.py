"""What the words of a float rule are when it runs: the ranges that formats are chosen by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.model.float_rule import FloatRule
from scotopia.model.interpret import Interpreter

#: Of what is seen, what the formats hold: the very largest are worth clipping.
PERCENTILE = 99.99

#: Share of what is seen below which a word that is not 0 counts alone: one that leaves 0 only where
#: a sample arrives does so in one cell of a hundred, and what it says would be the very largest.
SELDOM = 0.02

#: Numbers of each word that are kept in a step: those of cells that are so far apart.
STRIDE = 7

#: Inputs of a frame, by name, (H, W).
Inputs = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class Episode:
    """A run of a rule from its initial state.

    Attributes
    ----------
    height, width
        Cells.
    frames
        Inputs of each frame, in which the rule does `steps_per_frame` steps.
    seed
        Of the random words.
    """

    height: int
    width: int
    frames: Sequence[Inputs]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Seen:
    """What each word was, in the float rule.

    Attributes
    ----------
    lowest, highest
        (words,) the range that holds it nearly always: see `PERCENTILE`.
    """

    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]


def episodes(count: int = 2, frames: int = 96, side: int = 32) -> list[Episode]:
    """Return runs of a rule that is given nothing: on so many cells each way, by chance."""
    return [Episode(side, side, [{}] * frames, seed) for seed in range(count)]


@torch.no_grad()
def measure(rule: FloatRule, runs: Iterable[Episode]) -> Seen:
    """Run a rule, and return the ranges of all words.

    Raises
    ------
    InputError
        If there is no run, or a word is not finite.
    """
    graph, run = rule.graph, Interpreter(rule.graph)
    kept: list[list[NDArray[np.float32]]] = [[] for _ in graph.operations]
    steps = 0

    def keep(index: int, found: torch.Tensor) -> None:
        cells = found[0].flatten(1)[:, steps % STRIDE :: STRIDE]
        kept[index].append(cells.numpy().astype(np.float32))

    for episode in runs:
        generator = torch.Generator().manual_seed(episode.seed)
        start = rule.initial.state(episode.height, episode.width)
        state = torch.from_numpy(start).float()[None]
        for frame in episode.frames:
            given = {
                name: torch.from_numpy(np.asarray(one)).float()[None] for name, one in frame.items()
            }
            for _ in range(rule.steps_per_frame):
                state = run(state, given, run.draw(state, generator), watch=keep)
                steps += 1
    if not steps:
        raise InputError("the rule was not run: give at least one clip or one step")
    low, high = [], []
    for index, parts in enumerate(kept):
        numbers = np.concatenate(parts, 1)
        if not np.isfinite(numbers).all():
            name = graph.name(graph.words(index)[0])
            raise InputError(
                f"{name} is not finite after {steps} steps: train the rule again, or start it "
                "from another state"
            )
        for lane in numbers:
            spoken = lane[lane != 0]
            counted = np.append(spoken, 0) if len(spoken) < SELDOM * len(lane) else lane
            low.append(float(np.percentile(counted, 100 - PERCENTILE)))
            high.append(float(np.percentile(counted, PERCENTILE)))
    seen = Seen(np.array(low), np.array(high))
    words = list(graph.channels.values())
    first = rule.initial.ends()  # of which a percentile may leave out a cell
    seen.lowest[words] = np.minimum(seen.lowest[words], first[0])
    seen.highest[words] = np.maximum(seen.highest[words], first[1])
    return seen
