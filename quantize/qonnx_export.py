"""Integer rules as QONNX models, and back.

QONNX (Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks", 2022)
is ONNX with `Quant` nodes: q = clamp(x / scale) rounded, times scale, in float32. Tensors carry
values, not codes; since every scale is a power of two and every word fits float32's 24 bits, or is
a sum that is stated as two that do, a value is exactly its code * 2**-frac_bits, and the model
computes the golden model bit for bit. Needs the package `onnx`; `qonnx` runs it.
"""

import base64
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.model.files import MAX_BYTES, parse_description
from scotopia.model.onnx_model import VERSION, describe, import_onnx, with_metadata, write_model

from .integer_rule import IntegerRule, kind_of
from .qonnx_nodes import QonnxGraph


def export_qonnx(rule: IntegerRule, path: Path, height: int = 16, width: int = 16) -> None:
    """Write one step of the rule, on H x W cells, to a QONNX model, whole or not at all.

    Inputs are `state` (1, C, H, W), each of the rule's inputs under its name, (1, 1, H, W), and, if
    it draws random numbers, `noise` (1, R, H, W): all in [0, 1), multiples of 2**-bits of the
    graph's `Random`, drawn anew for each step. Output is `next_state`. All are values, float32,
    with the meaning of `IntegerRule.step`. The size is fixed because QONNX's tools ask for every
    shape; it is no part of the rule. The metadata hold what the nodes do not say, as `export_onnx`
    has it, and the packed rule.

    Raises
    ------
    InputError
        If a number in a step is more than float32 holds exactly, a format is a signed one of one
        bit, an input has a name that the model needs, or the package `onnx` is missing.
    """
    _check_size(height, width)
    write_model(path, _model(rule, height, width, _packed(rule)))


def import_qonnx(path: Path) -> IntegerRule:
    """Read a rule from a model that `export_qonnx` wrote: equal in every field.

    It is read from the metadata, with all checks of a rule file; then the model
    is written anew from it and compared, so that one that computes something else is refused.

    Raises
    ------
    InputError
        If the file is no such model, of another version, or was changed.
    """
    model = _read(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        shape = model.graph.input[0].type.tensor_type.shape.dim
        height, width = (axis.dim_value for axis in list(shape)[2:])
        _check_size(height, width)
        rule = _unpacked(metadata["rule"])
        same = bool(model == _model(rule, height, width, metadata["rule"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"model {path} holds no rule ({text}): export it again") from error
    if not same:
        raise InputError(
            f"model {path} computes something else than the rule that it holds: export it again"
        )
    return rule


def _packed(rule: IntegerRule) -> str:
    """Return a rule as text: JSON, with the bytes of tensors in base64."""
    description, tensors = rule.pack()
    packed = {
        name: [str(one.dtype), one.shape, base64.b64encode(one.tobytes()).decode()]
        for name, one in tensors.items()
    }
    return json.dumps({"description": description, "tensors": packed}, sort_keys=True)


def _unpacked(text: str) -> IntegerRule:
    """Undo `_packed`; errors as `IntegerRule.unpack`, if it was something else."""
    packed = parse_description(text)
    tensors = {}
    for name, (dtype, shape, content) in dict(packed["tensors"]).items():
        if dtype not in ("float64", "int32"):
            raise TypeError(f"{name} is of {dtype}")
        array = np.frombuffer(base64.b64decode(content, validate=True), dtype)
        tensors[name] = array.reshape(shape)
    description = packed["description"]
    return kind_of(description).unpack(description, tensors)


def _check_size(height: int, width: int) -> None:
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= 1024:
            raise InputError(f"{name} {side} is outside 1 to 1024: choose one inside")


def _read(path: Path) -> Any:
    """Read an ONNX model of an integer rule, unchecked but for what it says of itself."""
    onnx = import_onnx()
    if not path.is_file():
        raise InputError(f"model {path} does not exist: give the path of an .onnx file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"model {path} has {path.stat().st_size} bytes, more than {MAX_BYTES}: "
            "give a model written by Scotopia"
        )
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except decode_error as error:
        raise InputError(
            f"model {path} cannot be read: it is truncated or no ONNX model; export it again"
        ) from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("scotopia") != "integer rule":
        raise InputError(
            f"{path} is no QONNX model of an integer rule: give one written by export_qonnx"
        )
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"model {path} has version {metadata.get('version')}, this Scotopia reads version "
            f"{VERSION}: export it again with this Scotopia"
        )
    return model


def _model(rule: IntegerRule, height: int, width: int, packed: str) -> Any:
    """Model of a rule, with its file as text."""
    description = describe(
        rule.channel_names, rule.steps_per_frame, rule.events, rule.initial, rule.training
    )
    model = QonnxGraph(rule.graph, height, width).model()
    return with_metadata(model, "integer rule", description, rule=packed)
