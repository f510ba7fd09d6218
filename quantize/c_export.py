"""The C header of an integer rule: its step graph in C99, and what a rule that sees video adds.

That is how pixels become codes, and how codes of the prediction become pixels.
"""

from pathlib import Path

from scotopia.graph import c
from scotopia.graph.qformat import QFormat
from scotopia.model.files import write_atomically

from .layered_rule import FIRE_BITS, LayeredRule, fire_threshold

_CODE = """
/* Code of a pixel. */
static inline int32_t @_sample(uint8_t pixel)
{
    return SAMPLE;
}

/* Pixel of a prediction's code. */
static inline uint8_t @_pixel(int32_t code)
{
    const int32_t pixel = PIXEL;
    return (uint8_t)(pixel < 0 ? 0 : pixel > 255 ? 255 : pixel);
}
"""

_USE = (
    "for each frame {",
    "    where a pixel (0 to 255) arrived: sample[cell] = @_sample(pixel), valid[cell] = 1;",
    "    elsewhere: valid[cell] = 0;",
    "    STEPS_PER_FRAME times {",
    "        STEP",
    "    }",
    "    the prediction of each pixel: @_pixel(state[cell]);",
    "}",
)


def export_c(rule: LayeredRule, path: Path, name: str = "scotopia") -> None:
    """Write a rule as a C header, whole or not at all.

    Beside what `graph.c.c_header` says, it holds `NAME_sample(pixel)` and `NAME_pixel(code)`: an
    8-bit pixel to a sample's code, and a prediction's code to the nearest 8-bit pixel.

    Parameters
    ----------
    name
        What every name in the header starts with.

    Raises
    ------
    InputError
        If `name` is no C identifier, or some number needs more than 64 bits.
    OSError
        If the file cannot be written.
    """
    write_atomically(path, c_header(rule, name))


def c_header(rule: LayeredRule, name: str = "scotopia") -> str:
    """Return the text that `export_c` writes."""
    channels = rule.config.channels
    prediction, sample, trace = (rule.config.channel_names[i] for i in (0, channels, channels + 1))
    code = _CODE.replace("SAMPLE", _sample_code(rule.sample_format))
    extra = c.Extra(
        about=_about(rule),
        meanings={
            prediction: "prediction: pixel = (value + 1) * 128",
            sample: "the last sample",
            trace: "full when it arrived, one code less with each step",
        },
        use=[line.replace("STEPS", f"{name.upper()}_STEPS") for line in _USE],
        defines={
            "STEPS_PER_FRAME": str(rule.config.steps_per_frame),
            "STATE_BITS": f"{rule.state_bits} /* of a cell, no code wider than its range */",
        },
        code=code.replace("PIXEL", _pixel_code(rule.state_formats[0])),
    )
    return c.c_header(rule.graph, name, rule.noise_seed, extra)


def _sample_code(format: QFormat) -> str:
    """C expression of `LayeredRule.sample_codes`."""
    up = format.frac_bits - 7
    if up < 0:
        return f"@_floor(pixel - 128, {-up})"
    return "pixel - 128" if up == 0 else f"(pixel - 128) * {1 << up}"


def _pixel_code(format: QFormat) -> str:
    """C expression of `LayeredRule.pixels` times 255, rounded to nearest."""
    frac = format.frac_bits
    if frac > 28:
        return f"(int32_t)@_floor64({(1 << frac) + (1 << (frac - 8))} + (int64_t)code, {frac - 7})"
    if frac > 7:
        return f"@_floor(code + {(1 << frac) + (1 << (frac - 8))}, {frac - 7})"
    return "code + 128" if frac == 7 else f"(code + {1 << frac}) * {1 << (7 - frac)}"


def _about(rule: LayeredRule) -> str:
    config = rule.config
    parts = [
        f"{config.kind}, {config.channels} learned channels, {config.hidden} hidden neurons",
        f"{config.parameters:,} parameters",
        f"inputs {', '.join(config.inputs) or 'none'}",
        f"border {config.border}",
        f"rounding {rule.rounding}",
        f"overflow {rule.overflow}",
    ]
    if config.fire_rate < 1:
        parts.append(f"fire rate {fire_threshold(config)}/{1 << FIRE_BITS}")
    if rule.dither:
        parts.append(f"dither {rule.dither}")
    return (
        "It sees a video of which few pixels arrive; every cell keeps a running prediction of its "
        f"pixel. The rule: {'; '.join(parts)}."
    )
