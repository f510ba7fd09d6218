"""A small rule that uses all of the hardware, to plant faults in."""

import numpy as np

from scotopia.graph.qformat import QFormat
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule, update_formats


def specimen(seed: int = 318) -> LayeredRule:
    """Return a rule of random weights: gated, all inputs but one, random firing, dither.

    It computes nothing of use, but by this seed its states move through most of their range, and
    saturate at one end or the other.
    """
    # What is fresh takes the instructions that the others do, and nothing else of the hardware.
    inputs = tuple(name for name in INPUTS if name != "fresh")
    config = RuleConfig(
        channels=2,
        hidden=3,
        inputs=inputs,
        steps_per_frame=2,
        border="replicate",
        trace_bits=3,
        fire_rate=0.75,
    )
    rng = np.random.default_rng(seed)
    state = (QFormat(1, 5), QFormat(1, 4))
    formats = {
        "sample": state[0],
        "trace": QFormat(0, 3, signed=False),
        "valid": QFormat(1, 0, signed=False),
        "flicker": QFormat(2, 4),
        "innovation": QFormat(2, 4),
        "trust": QFormat(0, 4, signed=False),
        "recall": QFormat(1, 4),
    }
    input_formats = tuple(formats[name] for name in inputs)
    hidden = (
        QFormat(1, 4, signed=False),
        QFormat(0, 1, signed=False),  # a bit is added in another way than longer words
        QFormat(2, 3, signed=False),
    )
    gate = QFormat(0, 4, signed=False)

    def layer(
        inputs: tuple[QFormat, ...],
        outputs: tuple[QFormat, ...],
        taps: int,
        largest: int,
        bias: int,
    ) -> IntegerLayer:
        count = len(outputs)
        weight = rng.integers(-largest, largest + 1, (count, len(inputs), taps))
        return IntegerLayer(
            weight=weight,
            weight_frac=np.full(count, 4),
            bias=rng.integers(-bias, bias + 1, count),
            inputs=inputs,
            outputs=outputs,
        )

    return LayeredRule(
        config=config,
        state_formats=state,
        sample_format=state[0],
        input_formats=input_formats,
        gate_format=gate,
        perceive=layer(state + input_formats, hidden, 9, 7, 64),
        update=layer(hidden, update_formats(config, state, gate), 1, 15, 96),
        dither=3,
    ).with_proof()
