"""What happens in each place alone: arithmetic, comparisons, bits, functions of one number."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
import torch

from scotopia.graph.operations import Add, Maximum, Minimum, Subtract

from .fields import Field
from .handlers import REFUSED, field, handles, number
from .lines import SMOOTH, Lines, fitted
from .refusal import Refusal
from .writer import Const, Operand, Writer

#: Most steps of a staircase that floor, ceil and round may make.
_STEPS = 16


@handles("add")
def _add(writer: Writer, a: Operand, b: Operand, alpha: float = 1) -> Field:
    b = b if alpha == 1 else _mul(writer, b, float(alpha))
    if _is(a, 0) or _is(b, 0):
        return field(b if _is(a, 0) else a, "a sum")
    return writer.pairwise(Add, a, b)


@handles("sub", "subtract")
def _sub(writer: Writer, a: Operand, b: Operand, alpha: float = 1) -> Field:
    b = b if alpha == 1 else _mul(writer, b, float(alpha))
    if _is(a, 1) and isinstance(b, Field) and writer.is_bit(b):
        return replace(writer.opposite(b), dtype=b.dtype)
    if _is(b, 0):
        return field(a, "a difference")
    return writer.pairwise(Subtract, a, b)


@handles("rsub")
def _rsub(writer: Writer, a: Operand, b: Operand, alpha: float = 1) -> Field:
    return _sub(writer, b, a if alpha == 1 else _mul(writer, a, float(alpha)))


@handles("mul", "multiply")
def _mul(writer: Writer, a: Operand, b: Operand) -> Any:
    if _is(a, 1) or _is(b, 1):
        return b if _is(a, 1) else a
    if not isinstance(a, Field) and not isinstance(b, Field):
        return Const.of(torch.mul, _tensor(a), _tensor(b))
    return writer.product(a, b)


@handles("div", "divide", "true_divide")
def _div(writer: Writer, a: Operand, b: Operand, rounding_mode: str | None = None) -> Field:
    if isinstance(b, Field):
        raise Refusal(
            "divides by what the cells hold", "multiply, or divide by a number that is the same"
        )
    if rounding_mode:
        raise Refusal("divides to integers", "compare with the limits instead")
    return field(_mul(writer, a, _tensor(b).map(lambda t: 1.0 / t.double())), "a quotient")


@handles("neg", "negative")
def _neg(writer: Writer, a: Field) -> Field:
    return writer.pairwise(Subtract, 0.0, a)


@handles("square")
def _square(writer: Writer, a: Field) -> Field:
    return writer.product(a, a)


@handles("pow")
def _pow(writer: Writer, a: Operand, exponent: Operand) -> Field:
    if not isinstance(a, Field) or isinstance(exponent, Field):
        raise Refusal("has an exponent that is no number", "multiply")
    power = number(exponent, "an exponent")
    if power not in range(1, 9):
        raise Refusal(f"takes the power {power:g}", "use powers of 1 to 8, which are products")
    return reduce(writer.product, [a] * int(power))


@handles("abs", "absolute")
def _abs(writer: Writer, a: Field) -> Field:
    return writer.pairwise(Maximum, a, _neg(writer, a))


@handles("sign", "sgn")
def _sign(writer: Writer, a: Field) -> Field:
    found = writer.pairwise(Subtract, writer.less(0.0, a), writer.less(a, 0.0))
    return replace(found, dtype=a.dtype)


@handles("maximum", "fmax")
def _maximum(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.pairwise(Maximum, a, b)


@handles("minimum", "fmin")
def _minimum(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.pairwise(Minimum, a, b)


@handles("clamp", "clip")
def _clamp(writer: Writer, a: Field, low: Any = None, high: Any = None) -> Field:
    if low is not None:
        a = writer.pairwise(Maximum, a, low)
    return a if high is None else writer.pairwise(Minimum, a, high)


@handles("hardtanh")
def _hardtanh(writer: Writer, a: Field, low: float = -1.0, high: float = 1.0) -> Field:
    return _clamp(writer, a, low, high)


@handles("clamp_min")
def _clamp_min(writer: Writer, a: Field, low: Operand) -> Field:
    return writer.pairwise(Maximum, a, low)


@handles("clamp_max")
def _clamp_max(writer: Writer, a: Field, high: Operand) -> Field:
    return writer.pairwise(Minimum, a, high)


@handles("relu")
def _relu(writer: Writer, a: Field) -> Field:
    return writer.pairwise(Maximum, a, 0.0)


@handles("relu6")
def _relu6(writer: Writer, a: Field) -> Field:
    return _clamp(writer, a, 0.0, 6.0)


@handles("leaky_relu")
def _leaky_relu(writer: Writer, a: Field, slope: float = 0.01) -> Field:
    kind = Maximum if slope <= 1 else Minimum
    return writer.pairwise(kind, a, _mul(writer, a, float(slope)))


@handles("prelu", "_prelu_kernel")
def _prelu(writer: Writer, a: Field, slope: Const) -> Field:
    if slope.value.ndim == 1 and slope.value.numel() > 1:
        rank = len(a.dims)
        slope = slope.map(lambda t: t.reshape(-1, *(1,) * (rank - 2)))
    positive, negative = writer.pairwise(Maximum, a, 0.0), writer.pairwise(Minimum, a, 0.0)
    return writer.pairwise(Add, positive, writer.product(negative, slope))


@handles("threshold")
def _threshold(writer: Writer, a: Field, limit: float, value: float) -> Field:
    return writer.select(writer.less(float(limit), a), a, float(value))


@handles("hardsigmoid")
def _hardsigmoid(writer: Writer, a: Field) -> Field:
    return _clamp(writer, _add(writer, _mul(writer, a, 1 / 6), 0.5), 0.0, 1.0)


@handles("hardswish")
def _hardswish(writer: Writer, a: Field) -> Field:
    return writer.product(a, _hardsigmoid(writer, a))


@handles("hardshrink")
def _hardshrink(writer: Writer, a: Field, limit: float = 0.5) -> Field:
    return writer.select(writer.less(float(limit), _abs(writer, a)), a, 0.0)


@handles("lerp")
def _lerp(writer: Writer, a: Operand, b: Operand, share: Operand) -> Field:
    return writer.pairwise(Add, a, _mul(writer, share, _sub(writer, b, a)))


@handles("addcmul")
def _addcmul(writer: Writer, a: Operand, b: Operand, c: Operand, value: float = 1) -> Field:
    return _add(writer, a, _mul(writer, b, c), value)


# --- comparisons and bits ---------------------------------------------------------------------


@handles("lt", "less")
def _lt(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.less(a, b)


@handles("gt", "greater")
def _gt(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.less(b, a)


@handles("le", "less_equal")
def _le(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.opposite(writer.less(b, a))


@handles("ge", "greater_equal")
def _ge(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.opposite(writer.less(a, b))


@handles("ne", "not_equal", "logical_xor", "bitwise_xor", "__xor__")
def _ne(writer: Writer, a: Operand, b: Operand) -> Field:
    bits = [isinstance(x, Field) and writer.is_bit(x) for x in (a, b)]
    if bits[0] and _is(b, 0):
        return replace(field(a, "a bit"), dtype=torch.bool)
    return writer.differs(a, b)


@handles("eq")
def _eq(writer: Writer, a: Operand, b: Operand) -> Field:
    if isinstance(a, Field) and writer.is_bit(a) and _is(b, 1):
        return replace(a, dtype=torch.bool)
    return writer.opposite(_ne(writer, a, b))


@handles("logical_and", "bitwise_and", "__and__")
def _and(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.pairwise(Minimum, writer.as_bit(a), writer.as_bit(b))


@handles("logical_or", "bitwise_or", "__or__")
def _or(writer: Writer, a: Operand, b: Operand) -> Field:
    return writer.pairwise(Maximum, writer.as_bit(a), writer.as_bit(b))


@handles("logical_not", "bitwise_not", "__invert__")
def _not(writer: Writer, a: Operand) -> Field:
    return writer.opposite(field(writer.as_bit(a), "a bit"))


@handles("where")
def _where(writer: Writer, condition: Operand, a: Any = None, b: Any = None) -> Field:
    if a is None or b is None:
        raise Refusal(*REFUSED["nonzero"])
    return writer.select(condition, a, b)


@handles("masked_fill")
def _masked_fill(writer: Writer, a: Operand, mask: Operand, value: Operand) -> Field:
    return writer.select(mask, value, a)


def _steps(name: str) -> Any:
    def handle(writer: Writer, a: Field, *_: Any) -> Field:
        if writer.is_bit(a):
            return a
        spans = [writer.span(word) for word in a.listed]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        if not (isfinite(low) and isfinite(high)):
            raise Refusal(
                "rounds a number of any size",
                "clamp it first, or compare it with the limits: the quantizer rounds all words",
            )
        if high - low > _STEPS:
            raise Refusal(f"rounds to more than {_STEPS} levels", "clamp it further")
        total: Field | float = float(floor(low))
        if name == "round":
            # Ties go to the even number.
            total = float(round(low))
            levels = range(int(total) + 1, round(high) + 1)
            for level in levels:
                edge = level - 0.5
                bit = writer.less(edge, a) if level % 2 else writer.opposite(writer.less(a, edge))
                total = _add(writer, total, bit)
        elif name == "ceil":
            total = float(ceil(low))
            for level in range(ceil(low), ceil(high)):
                total = _add(writer, total, writer.less(float(level), a))
        else:
            for level in range(floor(low) + 1, floor(high) + 1):
                bit = writer.opposite(writer.less(a, float(level)))
                total = _add(writer, total, bit)
        if not isinstance(total, Field):
            return writer.pairwise(Add, writer.pairwise(Subtract, a, a), total)
        return replace(total, dtype=a.dtype)

    return handle


for _name in ("floor", "ceil", "round"):
    handles(_name)(_steps(_name))


# --- smooth functions -------------------------------------------------------------------------


def bend(writer: Writer, a: Field, lines: Lines) -> Field:
    """Write a function that is a sum of clipped lines."""
    total: Field | float = lines.offset
    for slope, low, high in zip(lines.slopes, lines.knots[:-1], lines.knots[1:], strict=True):
        ends = (float(end) if np.isfinite(end) else None for end in (low, high))
        total = _add(writer, total, _mul(writer, _clamp(writer, a, *ends), float(slope)))
    assert isinstance(total, Field)
    return total


def _smooth(name: str, arguments: Sequence[str]) -> Any:
    def handle(writer: Writer, a: Field, *given: Any, **options: Any) -> Field:
        options |= dict(zip(arguments, given, strict=False))
        lines = lines_for(name, writer.lines, options)
        writer.approximations[f"{writer.label}: {name}"] = lines.error
        return bend(writer, a, lines)

    return handle


#: Arguments of smooth functions, as PyTorch names them.
SMOOTH_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "elu": ("alpha", "scale", "input_scale"),
    "celu": ("alpha",),
    "softplus": ("beta", "threshold"),
    "gelu": ("approximate",),
}


def lines_for(name: str, count: int, options: dict[str, Any]) -> Lines:
    """Return the lines of a smooth function, as it is called.

    Raises
    ------
    Refusal
        If it is called in a way that is not known.
    """
    if name == "elu" and options.get("scale", 1) != 1:
        name, options = "selu", {k: v for k, v in options.items() if k not in ("alpha", "scale")}
    known = {"gelu": {"approximate"}, "elu": {"alpha"}, "celu": {"alpha"}, "softplus": {"beta"}}
    allowed = known.get(name, set())
    usual: dict[str, Any] = {
        "alpha": 1.0,
        "scale": 1.0,
        "input_scale": 1.0,
        "beta": 1.0,
        "threshold": 20.0,
    }
    usual["approximate"] = "none"
    kept = {key: value for key, value in options.items() if usual.get(key) != value}
    if kept.keys() - allowed:
        raise Refusal(f"has arguments {kept}", "leave them as they are by default")
    return fitted(name, count, tuple(sorted(kept.items())))


for _name in SMOOTH:
    handles(_name)(_smooth(_name, SMOOTH_ARGUMENTS.get(_name, ())))


@handles("log_sigmoid_forward")
def _log_sigmoid(writer: Writer, a: Field) -> list[Any]:
    return [_smooth("log_sigmoid", ())(writer, a), None]


# --- random numbers ---------------------------------------------------------------------------


@handles("rand_like")
def _rand_like(writer: Writer, a: Field, **_: Any) -> Field:
    return writer.draw(a.dims)


@handles("uniform")
def _uniform(writer: Writer, a: Operand, low: float = 0.0, high: float = 1.0, **_: Any) -> Field:
    shape = a.dims if isinstance(a, Field) else writer.cells(_tensor(a).value.shape)
    scaled = _mul(writer, writer.draw(shape), float(high - low))
    return _add(writer, scaled, float(low))


@handles("bernoulli")
def _bernoulli(writer: Writer, a: Operand, share: Any = None, **_: Any) -> Field:
    like = field(a, "a shape") if share is not None else a
    if isinstance(like, Field):
        drawn = writer.draw(like.dims)
    else:
        assert isinstance(like, Const)
        drawn = writer.draw(writer.cells(like.value.shape))
    return replace(writer.less(drawn, a if share is None else share), dtype=torch.float32)


def _is(operand: object, value: float) -> bool:
    return isinstance(operand, int | float) and operand == value


def _tensor(operand: object) -> Const:
    if isinstance(operand, Const):
        return operand
    assert isinstance(operand, int | float), operand
    return Const(torch.tensor(float(operand)))
