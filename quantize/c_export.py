"""The C header of an integer rule: its step graph in C99, and what a rule that sees video adds.

That is how pixels become codes, and how codes of the prediction become pixels.
"""

from collections.abc import Iterator
from pathlib import Path

from scotopia.graph.c import header
from scotopia.graph.c.statements import identifier
from scotopia.graph.qformat import QFormat
from scotopia.model.files import write_atomically

from .integer_rule import IntegerRule

_CODE = """
/* Code of a pixel. */
static inline int32_t @_sample(uint8_t pixel)
{
    return SAMPLE;
}

/* Pixel of a prediction's code. */
static inline uint8_t @_pixel(CODE code)
{
    const CODE pixel = PIXEL;
    return (uint8_t)(pixel < 0 ? 0 : pixel > 255 ? 255 : pixel);
}
"""


def export_c(rule: IntegerRule, path: Path, name: str = "scotopia") -> None:
    """Write a rule as a C header, whole or not at all.

    Beside what `graph.c.header` says, that of a rule that sees video holds `NAME_sample(pixel)` and
    `NAME_pixel(code)`: an 8-bit pixel to the code of an event, and a prediction's code to the
    nearest 8-bit pixel.

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


def c_header(rule: IntegerRule, name: str = "scotopia") -> str:
    """Return the text that `export_c` writes."""
    formats = {rule.input_words[event.value] for event in rule.events}
    # As `IntegerRule.sample_codes`: where all numbers in [-1, 1) are held, a pixel is p / 128 - 1.
    video = len(formats) == 1 and all(one.signed and one.int_bits >= 1 for one in formats)
    extra = header.Extra(
        meanings={rule.channel_names[0]: "prediction: pixel = (value + 1) * 128"} if video else {},
        use=tuple(_use(rule, video)),
        defines={
            "STEPS_PER_FRAME": str(rule.steps_per_frame),
            "STATE_BITS": f"{rule.state_bits} /* of a cell, no code wider than its range */",
        },
        code=_pixels(rule.event_format, rule.channel_formats[0]) if video else "",
    )
    return header.c_header(rule.graph, name, rule.noise_seed, rule.initial, extra)


def _use(rule: IntegerRule, video: bool) -> Iterator[str]:
    """Lines that show how a frame is shown to the rule."""
    yield "for each frame {"
    for event in rule.events:
        what, number = ("a pixel (0 to 255)", "@_sample(pixel)") if video else ("a code", "code")
        line = f"    where {what} arrived: {identifier(event.value)}[cell] = {number}"
        if event.flag is None:
            yield f"{line};"
        else:
            yield f"{line}, {identifier(event.flag)}[cell] = 1;"
            yield f"    elsewhere: {identifier(event.flag)}[cell] = 0;"
    yield from ("    @@_STEPS_PER_FRAME times {", "        STEP", "    }")
    if video:
        yield "    the prediction of each pixel: @_pixel(state[cell]);"
    yield "}"


def _pixels(sample: QFormat, prediction: QFormat) -> str:
    """C functions of `IntegerRule.sample_codes`, and of its `pixels` times 255, to the nearest."""
    up, frac = sample.frac_bits - 7, prediction.frac_bits
    code = f"(pixel - 128) * {1 << up}" if up > 0 else "pixel - 128"
    if up < 0:
        code = f"@_floor({code}, {-up})"
    wide = prediction.bits + max(7 - frac, 0) > 29
    if frac > 7:
        half = (1 << frac) + (1 << (frac - 8))
        pixel = f"@_floor{'64' * wide}(code + {half}, {frac - 7})"
    else:
        pixel = f"code * {1 << (7 - frac)} + 128" if frac < 7 else "code + 128"
    text = _CODE.replace("CODE", "int64_t" if wide else "int32_t")
    return text.replace("SAMPLE", code).replace("PIXEL", pixel)
