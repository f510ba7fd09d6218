"""The stages of a verification above the integers: the float rule, and the fake-quantized one."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters, plane_number
from scotopia.graph.qformat import IntArray
from scotopia.model.rule import Rule
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.layered_rule import FIRE_BITS, LayeredRule, fire_threshold
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.verify import Material, Stage, compared_stage


def float_stages(material: Material, rule: Rule | None = None) -> list[Stage]:
    """Measure how far the float rule is from the fake-quantized one; compare that with the golden.

    Parameters
    ----------
    rule
        That was quantized. By default the float rule of the same weights: then the distance is that
        of rounding and clipping alone.
    """
    integer = material.rule
    assert isinstance(integer, LayeredRule)
    fake = FakeQuantRule.of(integer)
    if rule is None:
        rule = Rule(integer.config).double()
        rule.load_state_dict(fake.state_dict())
    float_rule = rule.double()

    def run_fake(stimulus: Stimulus) -> tuple[IntArray, int]:
        scales = np.array([2.0**format.frac_bits for format in integer.channel_formats])
        values = run(integer, fake, stimulus) * scales[:, None, None]
        codes = np.rint(values).astype(np.int64)
        # A value beside its grid is no code.
        return np.where(values == codes, codes, np.iinfo(np.int64).max), 0

    stage = compared_stage("fake-quantized = golden model", material, run_fake)
    start = time.perf_counter()
    stimulus = material.stimulus()
    channels = integer.config.channels
    error = (run(integer, float_rule, stimulus) - run(integer, fake, stimulus))[:, :channels]
    rms = float(np.sqrt((error[:, 0] ** 2).mean()))
    # Pixels from 0 to 1 are states from -1 to 1.
    level = f"{-20 * np.log10(rms / 2):.1f} dB below the peak" if rms else "none"
    distance = Stage(
        "float rule, fake-quantized",
        stage.compared,
        stage.cell_updates,
        0,
        time.perf_counter() - start,
        measured=True,
        detail=f"distance of the predictions: {level}; largest of any learned channel "
        f"{abs(error).max():.3f} of 2",
    )
    return [distance, stage]


def run(integer: LayeredRule, rule: Rule, stimulus: Stimulus) -> NDArray[np.float64]:
    """States (S, C, H, W) of a float rule after every step, on the integers' samples and noise."""
    height, width = stimulus.shape
    registers = RowRegisters(height, width, integer.noise_seed)
    formats = integer.channel_formats
    start = integer.initial_state(height, width)
    pairs = zip(formats, start, strict=True)
    state = torch.from_numpy(np.stack([format.values(codes) for format, codes in pairs]))[None]
    states, config = [], integer.config
    for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True):
        shown = torch.from_numpy(integer.sample_format.values(samples))[None, None]
        valid = torch.from_numpy(mask.astype(float))[None, None]
        for _ in range(config.steps_per_frame):
            extra = {}
            if integer.noise_planes:
                noise = registers.planes(integer.noise_planes)
                if config.fire_rate < 1:
                    fires = plane_number(noise[:FIRE_BITS]) < fire_threshold(config)
                    extra["fired"] = torch.from_numpy(fires.astype(float))[None]
                if integer.dither and isinstance(rule, FakeQuantRule):
                    dither = plane_number(noise[-integer.dither :]) / 2.0**integer.dither
                    extra["dither"] = torch.from_numpy(dither)[None]
            with torch.no_grad():
                state = rule(state, shown, valid, **extra)
            states.append(state[0].numpy())
    return np.stack(states)
