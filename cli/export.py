"""What `scotopia export` does: rules as other tools read them."""

from collections.abc import Callable
from pathlib import Path

from scotopia.graph.errors import InputError
from scotopia.model.files import rule_kind
from scotopia.model.float_rule import FloatRule
from scotopia.model.onnx_export import export_onnx
from scotopia.model.rule import Rule
from scotopia.quantize.c_export import export_c
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.qonnx_export import export_qonnx

from .rules import rule_path

#: Kinds of rule files, and what they hold.
_HELD = {"float rule": "float", "float graph": "float", "integer rule": "integer"}

#: Rules that each format states.
FORMATS = {"onnx": "float", "qonnx": "integer", "c": "integer"}


def export(rule: str, format: str, out: Path, height: int, width: int, name: str) -> str:
    """Write a rule in another format, and say what was written.

    Parameters
    ----------
    rule
        A file, or a shipped name.
    format
        One of `FORMATS`.
    height, width
        Of the array that a QONNX model is stated for.
    name
        What all names in a C header start with.

    Raises
    ------
    InputError
        If the format is unknown, is not for rules of this kind, or cannot state this rule.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    path = rule_path(rule)
    kind = rule_kind(path)
    held = _HELD[kind]
    if held != FORMATS[format]:
        others = ", ".join(other for other, stated in FORMATS.items() if stated == held)
        raise InputError(
            f"rule {rule} is {'an' if held == 'integer' else 'a'} {held} rule, and {format} states "
            f"{FORMATS[format]} rules: choose {others}"
        )
    floats = FloatRule if kind == "float graph" else Rule
    writers: dict[str, Callable[[], None]] = {
        "onnx": lambda: export_onnx(floats.load(path), out),
        "qonnx": lambda: export_qonnx(IntegerRule.load(path), out, height, width),
        "c": lambda: export_c(IntegerRule.load(path), out, name),
    }
    writers[format]()
    return f"{out}: one step of {rule} as {format}, {out.stat().st_size} bytes"
