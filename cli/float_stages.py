"""The stages of a verification above the integers: the float rule, and the fake-quantized one."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray
from scotopia.model.float_rule import FloatRule
from scotopia.model.interpret import Interpreter
from scotopia.model.running import random_words
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.verify import Material, Stage, compared_stage

Values = NDArray[np.float64]


def float_stages(material: Material, rule: FloatRule | None = None) -> list[Stage]:
    """Measure how far the float rule is from the fake-quantized one; compare that with the golden.

    Fake-quantized is the integer rule's graph in PyTorch, on the values of its codes.

    Parameters
    ----------
    rule
        That was quantized. By default the float rule of the same weights, which rounds nothing:
        then the distance is that of rounding alone.
    """
    integer = material.rule
    fake = Interpreter(integer.graph)
    plain = Interpreter(integer.graph, rounds=False) if rule is None else Interpreter(rule.graph)

    def run_fake(stimulus: Stimulus) -> tuple[IntArray, int]:
        values = np.stack([*states(integer, fake, stimulus)]) / _own_units(integer)
        codes = np.rint(values).astype(np.int64)
        # A value beside its grid is no code.
        return np.where(values == codes, codes, np.iinfo(np.int64).max), 0

    stage = compared_stage("fake-quantized = golden model", material, run_fake)
    start = time.perf_counter()
    stimulus = material.stimulus()
    # What the quantizer scaled is compared as the float rule has it.
    unscaled = integer.units[:, None, None] / _own_units(integer)
    quantized = np.stack([*states(integer, fake, stimulus)]) * unscaled
    floats = np.stack([*states(integer, plain, stimulus, rule)])
    distance = Stage(
        "float rule, fake-quantized",
        stage.compared,
        stage.cell_updates,
        0,
        time.perf_counter() - start,
        measured=True,
        detail=distances(integer, floats if rule else floats * unscaled, quantized),
    )
    return [distance, stage]


def distances(integer: IntegerRule, some: Values, others: Values) -> str:
    """Say how far two runs (S, C, H, W) are apart: in the first channel, and in the worst."""
    error = np.abs(some - others)
    spans = integer.units * [2.0**one.bits for one in integer.channel_formats]
    names = integer.channel_names
    rms = float(np.sqrt((error[:, 0] ** 2).mean()))
    level = f"{-20 * np.log10(rms / spans[0]):.1f} dB below its range" if rms else "none"
    worst = int((error.max((0, 2, 3)) / spans).argmax())
    return (
        f"distance of {names[0]}: {level}; largest of any channel {error[:, worst].max():.3g} of "
        f"{spans[worst]:g}, in {names[worst]}"
    )


@torch.no_grad()
def states(
    integer: IntegerRule, run: Interpreter, stimulus: Stimulus, rule: FloatRule | None = None
) -> Iterator[Values]:
    """Yield the values (C, H, W) after every step, on an integer rule's samples and random bits.

    As the graph that is run has them. From the first state of `rule`, or of the integer rule.
    """
    height, width = stimulus.shape
    registers = RowRegisters(height, width, integer.noise_seed)
    words = integer.input_words
    start = integer.initial_state(height, width) * _own_units(integer)
    state = torch.from_numpy(start if rule is None else rule.initial.state(height, width))[None]
    codes: dict[str, IntArray] = {}
    for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True):
        codes = integer.given(samples, mask, codes)
        inputs = {
            name: torch.from_numpy(words[name].values(one))[None] for name, one in codes.items()
        }
        for _ in range(integer.steps_per_frame):
            drawn = random_words(integer.graph, registers.planes(integer.noise_planes))
            noise = torch.from_numpy(drawn)[None, : run.random]
            state = run(state, inputs, noise)
            yield state[0].numpy()


def _own_units(integer: IntegerRule) -> Values:
    """What codes of the channels are worth in the integer rule's own graph, (C, 1, 1)."""
    return np.array([2.0**-one.frac_bits for one in integer.channel_formats])[:, None, None]
