"""The C header: one file of plain C99 that computes what the integer rule computes.

For microcontrollers and for other people's simulators, and a second golden model: it shares no line
with the first. `step.h.jinja`, beside this module, is the header; here is what it asks for.
"""

import re
import textwrap
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.model.files import write_atomically

from .integer_rule import FIRE_BITS, IntegerRule, fire_threshold

#: Widest format, and most bits before the point. A gate times a difference of states, and a trust
#: times a surprise, brought to 31 fraction bits, then stay below 2**61: no shift by up to 62 and no
#: half added to it leaves 64 bits.
_MOST_BITS = 28

_COLUMNS = 100

_ROUNDING_WORDS = {
    Rounding.TRN: "down",
    Rounding.TRN_ZERO: "towards zero",
    Rounding.RND: "to nearest, ties up",
    Rounding.RND_ZERO: "to nearest, ties towards zero",
    Rounding.RND_INF: "to nearest, ties away from zero",
    Rounding.RND_MIN_INF: "to nearest, ties down",
    Rounding.RND_CONV: "to nearest, ties to even",
}

#: When down + rest / unit goes to down + 1.
_ROUNDING_TEST = {
    Rounding.TRN: "",
    Rounding.TRN_ZERO: "down < 0 && rest > 0",
    Rounding.RND: "2 * rest >= unit",
    Rounding.RND_ZERO: "2 * rest > unit || (2 * rest == unit && down < 0)",
    Rounding.RND_INF: "2 * rest > unit || (2 * rest == unit && down >= 0)",
    Rounding.RND_MIN_INF: "2 * rest > unit",
    Rounding.RND_CONV: "2 * rest > unit || (2 * rest == unit && down % 2 != 0)",
}

_OVERFLOW_WORDS = {
    Overflow.WRAP: "What is left of a code when the bits above its range are dropped",
    Overflow.SAT: "The nearest code in range",
    Overflow.SAT_SYM: "The nearest code in range",
}

_WHAT_INPUTS_ARE = {
    "sample": "the last sample",
    "trace": "how long ago it arrived",
    "valid": "whether it arrived in this frame",
    "fresh": "whether it arrived in this step",
    "flicker": "what it changed by, if the one before has left a trace",
    "innovation": "what the prediction missed it by, if it arrived in this frame",
    "trust": "how much of the last sample still counts",
    "recall": "trust * what the prediction misses it by",
}


def export_c(rule: IntegerRule, path: Path, name: str = "scotopia") -> None:
    """Write a rule as a C header, whole or not at all.

    It holds the rule's numbers as constants and these functions, all `static inline`, all of whose
    arrays are in reading order, codes as int32_t, (C, H, W):

    - `NAME_step(state, sample, valid, noise, next, height, width)`: `IntegerRule.step`;
    - `NAME_sample(pixel)` and `NAME_pixel(code)`: an 8-bit pixel to a sample's code, and a
      prediction's code to the nearest 8-bit pixel;
    - `NAME_seed_rows(rows, height)` and `NAME_noise(rows, noise, height, width)` for a rule that
      draws random bits: `RowRegisters`, its registers kept by the caller.

    Parameters
    ----------
    name
        What every name in the header starts with.

    Raises
    ------
    InputError
        If `name` is no C identifier, or a format is too wide for 64-bit products.
    OSError
        If the file cannot be written.
    """
    text = c_header(rule, name)
    write_atomically(path, text)


def c_header(rule: IntegerRule, name: str = "scotopia") -> str:
    """Return the text that `export_c` writes."""
    # An underscore in front, or two in a row, belong to the compiler and to C++.
    if not re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*", name):
        raise InputError(
            f"name {name!r} cannot start C identifiers: choose letters, digits and single "
            "underscores, a letter first, such as scotopia"
        )
    _check_room(rule)
    config = rule.config
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = resources.files(__package__).joinpath("step.h.jinja").read_text("utf-8")
    state_names = config.channel_names[: config.channels]
    weight, bias, shift = rule.perceive.aligned
    update_weight, update_bias, update_shift = rule.update.aligned
    return environment.from_string(source).render(
        n=name,
        N=name.upper(),
        rule=rule,
        config=config,
        gated=config.kind == "gated",
        summary=_summary(rule),
        count=len(rule.channel_formats),
        legend=_legend(rule),
        planes=rule.noise_planes,
        fire_bits=FIRE_BITS,
        threshold=fire_threshold(config) if config.fire_rate < 1 else 0,
        gate_bits=rule.gate_format.frac_bits,
        inputs=_inputs(rule),
        needs=_needs(rule),
        sample_code=_sample_code(rule).replace("@", name),
        pixel_code=_pixel_code(rule).replace("@", name),
        rounding_words=_ROUNDING_WORDS[rule.rounding],
        rounding_test=_ROUNDING_TEST[rule.rounding],
        overflow_words=_OVERFLOW_WORDS[rule.overflow],
        state_range=_ranges(rule, rule.state_formats, state_names),
        input_range=_ranges(rule, rule.input_formats, config.inputs) if config.inputs else "",
        hidden_range=_ranges(
            rule, rule.perceive.outputs, [f"hidden {i}" for i in range(config.hidden)]
        ),
        update_range=_ranges(rule, rule.update.outputs, _update_names(rule)),
        perceive_weight=_kernels(weight, (*state_names, *config.inputs)),
        perceive_bias=_list(bias),
        perceive_shift=_list(shift),
        update_weight=_table(update_weight[:, :, 0], _update_names(rule)),
        update_bias=_list(update_bias),
        update_shift=_list(update_shift),
    )


def _check_room(rule: IntegerRule) -> None:
    formats = {
        "state": rule.state_formats,
        "input": rule.input_formats,
        "hidden": rule.perceive.outputs,
        "gate": (rule.gate_format,),
    }
    for name, group in formats.items():
        for format in group:
            if max(format.bits, format.int_bits) > _MOST_BITS:
                raise InputError(
                    f"{name} format {format} has more than {_MOST_BITS} bits, or as many before "
                    "its point: quantize with fewer, since products in C have 64"
                )


def _legend(rule: IntegerRule) -> list[str]:
    config = rule.config
    meanings = ["hidden"] * config.channels
    meanings[0] = "prediction: pixel = (value + 1) * 128"
    if "trust" in config.inputs:
        meanings[config.doubt] = "hidden, and doubt: how soon a sample is forgotten"
    meanings += ["the last sample", "full when it arrived, one code less with each step"]
    rows = [("channel", "name", "codes", "value", "meaning")] + [
        (str(i), name, f"{format.lowest} to {format.highest}", _value(format), meaning)
        for i, (name, format, meaning) in enumerate(
            zip(config.channel_names, rule.channel_formats, meanings, strict=True)
        )
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _value(format: QFormat) -> str:
    return f"code / {1 << format.frac_bits}" if format.frac_bits else "code"


def _inputs(rule: IntegerRule) -> list[dict[str, object]]:
    """C expressions of `IntegerRule.inputs`, and by how many fraction bits each has too many."""
    config, sample = rule.config, rule.sample_format.frac_bits
    codes = {
        "sample": ("last", sample),
        "trace": ("trace", rule.trace_format.frac_bits),
        "valid": ("arrived", 0),
        "fresh": (f"arrived && age < {rule.trace_format.highest}", 0),
        "flicker": ("age > 0 ? last - old : 0", sample),
        "innovation": ("arrived ? surprise : 0", sample),
    }
    if "trust" in config.inputs:
        bits, doubt = rule.trace_format.frac_bits, rule.state_formats[config.doubt].frac_bits
        frac = max(bits, doubt)
        # Written as products, since what is shifted to the left may be negative.
        up = f" * {1 << (frac - bits)}" * (frac > bits)
        codes["trust"] = (f"recency{up} - doubt * {4 << (frac - doubt)}", frac)
        trust = config.channels + config.inputs.index("trust")
        codes["recall"] = (f"seen[{trust}] * surprise", sample + rule.trust_format.frac_bits)
    inputs = []
    for i, (name, format) in enumerate(zip(config.inputs, rule.input_formats, strict=True)):
        code, frac = codes[name]
        inputs.append(
            {
                "index": config.channels + i,
                "code": code,
                # Of codes below 2**61 a shift by 62 leaves what any larger one does.
                "shift": min(frac - format.frac_bits, 62),
                "comment": f"{name}: {_WHAT_INPUTS_ARE[name]}",
            }
        )
    return inputs


def _needs(rule: IntegerRule) -> dict[str, bool]:
    """Which local variables the inputs speak of."""
    needed_by = {
        "last": {"sample", "flicker", "innovation", "recall"},
        "age": {"fresh", "flicker", "trace", "trust"},
        "trace": {"trace", "trust"},
        "surprise": {"innovation", "recall"},
    }
    return {name: not inputs.isdisjoint(rule.config.inputs) for name, inputs in needed_by.items()}


def _sample_code(rule: IntegerRule) -> str:
    """C expression of `IntegerRule.sample_codes`."""
    up = rule.sample_format.frac_bits - 7
    if up < 0:
        return f"(int32_t)@_floor(pixel - 128, {-up})"
    return "pixel - 128" if up == 0 else f"(pixel - 128) * {1 << up}"


def _pixel_code(rule: IntegerRule) -> str:
    """C expression of `IntegerRule.pixels` times 255, rounded to nearest."""
    frac = rule.state_formats[0].frac_bits
    if frac > 7:
        half = 1 << (frac - 8)
        return f"(int32_t)@_floor(code + {(1 << frac) + half}, {frac - 7})"
    return "code + 128" if frac == 7 else f"(code + {1 << frac}) * {1 << (7 - frac)}"


def _update_names(rule: IntegerRule) -> list[str]:
    config = rule.config
    names = list(config.channel_names[: config.channels])
    if config.kind == "residual":
        return [f"to be added to {name}" for name in names]
    return [f"candidate of {name}" for name in names] + [f"gate of {name}" for name in names]


def _ranges(rule: IntegerRule, formats: Sequence[QFormat], names: Sequence[str]) -> str:
    symmetric = rule.overflow is Overflow.SAT_SYM
    ranges = np.array([(f.lowest + (symmetric and f.signed), f.highest) for f in formats])
    comments = [f"{name}: {format}" for name, format in zip(names, formats, strict=True)]
    return _table(ranges, comments)


def _table(numbers: NDArray[np.int64], comments: Sequence[str], indent: str = "    ") -> str:
    """A matrix in C, a row a line unless it is too long, with its comment."""
    width = max(len(str(number)) for number in numbers.flat)
    lines = []
    for row, comment in zip(numbers, comments, strict=True):
        cells = ", ".join(str(number).rjust(width) for number in row)
        line = f"{indent}{{ {cells} }}, /* {comment} */"
        if len(line) > _COLUMNS:
            inner = _list(row, indent + "    ", width)
            line = f"{indent}{{ /* {comment} */\n{inner}\n{indent}}},"
        lines.append(line)
    return "\n".join(lines)


def _list(numbers: NDArray[np.int64], indent: str = "    ", width: int = 0) -> str:
    """A vector in C, in columns."""
    width = width or max(len(str(number)) for number in numbers)
    count = (_COLUMNS - len(indent) + 1) // (width + 2)
    rows = [numbers[i : i + count] for i in range(0, len(numbers), count)]
    return "\n".join(
        indent + " ".join(f"{number},".rjust(width + 1) for number in row) for row in rows
    )


def _kernels(weight: NDArray[np.int64], names: Sequence[str]) -> str:
    """A neuron's 3x3 kernels, one a line, neuron after neuron."""
    return "\n".join(
        f"    {{ /* hidden {i} */\n{_table(kernels, names, ' ' * 8)}\n    }},"
        for i, kernels in enumerate(weight)
    )


def _summary(rule: IntegerRule) -> str:
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
    text = textwrap.fill(f"The rule: {'; '.join(parts)}.", _COLUMNS - 3)
    return text.replace("\n", "\n * ")
