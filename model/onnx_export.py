"""The float rule as an ONNX model, and back.

The model is one step, written node by node from the rule's definition, so that it reads as
`Rule.forward` does; the caller runs it `steps_per_frame` times a frame. It is also a rule file: its
initializers are the rule's tensors, its metadata hold the rest, and `load_onnx` writes the model
anew from what it read and compares, so that a model that computes something else is refused.
Nothing in a file is executed or unpickled. Needs the package `onnx`.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from scotopia.graph.errors import InputError

from .config import Border, RuleConfig
from .files import (
    MAX_BYTES,
    check_training_record,
    parse_description,
    write_atomically,
)
from .rule import FilteredLayer, Rule

#: Version of both kinds of model; a reader refuses any other.
VERSION = 1

#: Operator set of a border: the oldest that has every operator, for the sake of other tools.
OPSET: dict[Border, int] = {"zero": 13, "replicate": 13, "wrap": 19}

#: Domain of QONNX's operators; a float rule has none of them.
QONNX = "qonnx.custom_op.general"

#: Fields of a rule's shape that a graph can state, whatever their value.
STATED = frozenset(
    (
        *("kind", "channels", "hidden", "inputs", "steps_per_frame"),
        *("border", "trace_bits", "perception", "block"),
    )
)

_PAD_MODE: dict[Border, str] = {"zero": "constant", "replicate": "edge", "wrap": "wrap"}

#: Name of a function that reads a model of each kind.
_READER = {"float rule": "load_onnx", "integer rule": "import_qonnx"}

#: Brings one of `config.inputs`, by name, into its range: name, tensor -> tensor.
Fit = Callable[[str, str], str]


def export_onnx(rule: Rule, path: Path) -> None:
    """Write one step of the rule to an ONNX model, whole or not at all.

    Inputs are `state` (B, C, H, W), `sample` and `valid`, both (B, P, H, W), finite everywhere;
    output is `next_state`, all float32 with the meaning of `Rule.forward`. B, H and W are free.
    A filtered perception becomes its full kernel, by an Einsum of its two factors.

    Raises
    ------
    InputError
        If a step of the rule is more than ONNX can state (random firing, quantized numbers), if a
        weight is not finite or no float32, or the package `onnx` is missing.
    """
    if type(rule) is not Rule or rule.grids is not None:
        raise InputError(
            f"{type(rule).__name__} computes on quantized numbers: export the float rule, or "
            "quantize it and export that with export_qonnx"
        )
    refuse_unstated(rule.config, STATED)
    for name, tensor in rule.state_dict().items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise InputError(f"{name} of the rule is not finite in float32: train it again")
    description = {"config": dataclasses.asdict(rule.config), "training": rule.training_record}
    write_model(path, float_graph(rule).model("float rule", json.dumps(description)))


def load_onnx(path: Path) -> Rule:
    """Read a rule from a model that `export_onnx` wrote: the same weights, bit for bit.

    Raises
    ------
    InputError
        If the file is no such model, of another version, or was changed.
    """
    model, description = read_model(path, "float rule")
    try:
        rule = Rule(RuleConfig(**description["config"]))
        rule.training_record = check_training_record(description["training"])
        tensors = read_tensors(model)
        rule.load_state_dict(
            {name: torch.from_numpy(tensors[name].copy()) for name in rule.state_dict()}
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model {path} holds no rule ({one_line(error)}): export it again") from (
            error
        )
    check_same(path, model, float_graph(rule))
    return rule


class StepGraph:
    """ONNX graph of one step, written node by node; what both kinds of rule share.

    A tensor is a name, and (B, channels, H, W) unless said otherwise. Names are those that
    `Rule.forward` uses.
    """

    def __init__(
        self, config: RuleConfig, batch: int | str, height: int | str, width: int | str
    ) -> None:
        self.onnx = import_onnx()
        self.config = config
        self.size = batch, height, width
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int | str, ...]] = {
            "state": self.cells(len(config.channel_names)),
            "sample": self.cells(config.pixels),
            "valid": self.cells(config.pixels),
        }

    def cells(self, channels: int) -> tuple[int | str, ...]:
        """Shape of a tensor of that many channels."""
        batch, height, width = self.size
        return batch, channels, height, width

    def constant(self, name: str, numbers: ArrayLike, dtype: Any = np.float32) -> str:
        """Add an initializer, unless there is one of that name."""
        array = np.array(numbers, dtype)
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
            self.shapes[name] = array.shape
        return name

    def node(
        self,
        operator: str,
        *inputs: str,
        to: str,
        shape: tuple[int | str, ...] | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node that makes tensor `to`, by default of the shape of its widest input."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [to], name=to, **attributes))
        wide = [self.shapes[name] for name in inputs if name not in self.constants]
        self.shapes[to] = shape or max(wide, key=lambda shape: shape[1])
        return to

    def split(self, tensor: str, **parts: int) -> None:
        """Split a tensor's channels in named parts of so many channels each."""
        sizes = self.constant(f"{tensor}.parts", list(parts.values()), np.int64)
        self.nodes.append(
            self.onnx.helper.make_node(
                "Split", [tensor, sizes], list(parts), name=f"{tensor}.split", axis=1
            )
        )
        self.shapes |= {part: self.cells(count) for part, count in parts.items()}

    def concat(self, tensors: list[str], to: str) -> str:
        """Put tensors' channels behind each other."""
        channels = sum(int(self.shapes[name][1]) for name in tensors)
        return self.node("Concat", *tensors, to=to, shape=self.cells(channels), axis=1)

    def channel_range(self, tensor: str, first: int, behind: int, to: str) -> str:
        """Take the channels from `first` to before `behind`."""
        ends = [self.constant(f"{to}.{i}", [i], np.int64) for i in (first, behind)]
        axis = self.constant("channel_axis", [1], np.int64)
        return self.node("Slice", tensor, *ends, axis, to=to, shape=self.cells(behind - first))

    def latch(self, sample: str, valid: str, old_sample: str, old_trace: str) -> tuple[str, ...]:
        """As `Rule.latch`: tensors of the new sample, trace and flicker (not yet clipped)."""
        tick = 2.0**-self.config.trace_bits
        surprise = self.node("Sub", sample, old_sample, to="arriving_change")
        change = self.node("Mul", valid, surprise, to="change")
        new_sample = self.node("Add", old_sample, change, to="new_sample")
        older = self.node("Sub", old_trace, self.constant("tick", tick), to="older")
        aged = self.node("Relu", older, to="aged")
        youth = self.node("Sub", self.constant("newest_trace", 1 - tick), aged, to="youth")
        refreshed = self.node("Mul", valid, youth, to="refreshed")
        new_trace = self.node("Add", aged, refreshed, to="new_trace")
        has_trace = self.node("Sign", old_trace, to="has_trace")  # traces are never negative
        return new_sample, new_trace, self.node("Mul", change, has_trace, to="flicker_sum")

    def fresh(self, valid: str, old_trace: str) -> str:
        """As in `Rule.forward`: where a sample arrived in this step."""
        newest = self.constant("newest_trace", 1 - 2.0**-self.config.trace_bits)
        age = self.node("Sub", newest, old_trace, to="old_age")
        has_age = self.node("Sign", age, to="has_age")  # traces are never above the newest
        return self.node("Mul", valid, has_age, to="fresh_sum")

    def perception(
        self, x: str, sample: str, trace: str, valid: str, old_trace: str, flicker: str, fit: Fit
    ) -> str:
        """As `Rule.perception`: what a cell shows, with a border of one cell around."""
        config = self.config
        prediction = self.channel_range(x, 0, config.pixels, to="prediction")
        surprise = self.node("Sub", sample, prediction, to="surprise")
        seen = {"x": x}
        for name in config.inputs:
            match name:
                case "sample":
                    seen[name] = fit(name, sample)
                case "trace":
                    seen[name] = fit(name, trace)
                case "valid":
                    seen[name] = fit(name, valid)
                case "fresh":
                    seen[name] = fit(name, self.fresh(valid, old_trace))
                case "flicker":
                    seen[name] = fit(name, flicker)
                case "innovation":
                    seen[name] = fit(name, self.node("Mul", valid, surprise, to="innovation_sum"))
                case "trust":
                    doubt = self.channel_range(x, config.doubt, config.doubt + 1, to="doubt")
                    doubts = self.node("Mul", doubt, self.constant("4", 4), to="doubt_x4")
                    trust = self.node("Sub", self.recency(trace), doubts, to="trust_sum")
                    seen[name] = fit(name, trust)
                case "recall":
                    recall = self.node("Mul", seen["trust"], surprise, to="recall_sum")
                    seen[name] = fit(name, recall)
                case _:  # an input newer than this function
                    raise InputError(f"input {name} has no ONNX nodes here: train without it")
        shown = self.concat(list(seen.values()), to="perception")
        pads = self.constant("border", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        batch, channels, height, width = self.shapes[shown]
        grown = tuple(side + 2 if isinstance(side, int) else side for side in (height, width))
        mode = _PAD_MODE[config.border]
        return self.node(
            "Pad", shown, pads, to="padded", shape=(batch, channels, *grown), mode=mode
        )

    def recency(self, trace: str) -> str:
        """As `recency` of the rule."""
        total = trace
        for factor, weight in ((8, 1), (64, 2)):
            grown = self.node(
                "Mul", trace, self.constant(f"{factor}", factor), to=f"trace_x{factor}"
            )
            offset = self.constant(f"{factor - 1}", factor - 1)
            late = self.node("Sub", grown, offset, to=f"late_x{factor}")
            part = self.node("Relu", late, to=f"recent_x{factor}")
            if weight != 1:
                by = self.constant(f"{weight}", weight)
                part = self.node("Mul", part, by, to=f"recent_x{factor}_x{weight}")
            total = self.node("Add", total, part, to=f"recency_x{factor}")
        return total

    def model(self, kind: str, description: str) -> Any:
        """Model of the graph so far, whose last node makes the output, with its metadata."""
        helper, tensor_type = self.onnx.helper, self.onnx.TensorProto.FLOAT
        infos = {
            name: helper.make_tensor_value_info(name, tensor_type, shape)
            for name, shape in self.shapes.items()
            if name not in self.constants
        }
        inputs = [infos.pop(name) for name in ("state", "sample", "valid")]
        output = infos.pop("next_state")
        graph = helper.make_graph(
            self.nodes,
            "step",
            inputs,
            [output],
            list(self.constants.values()),
            # Shapes within are for tools that cannot infer them, which want numbers.
            value_info=list(infos.values()) if isinstance(self.size[0], int) else [],
        )
        domains = {"": OPSET[self.config.border]}
        domains |= {node.domain: 1 for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid(*item) for item in domains.items()]
        model = helper.make_model(
            graph,
            producer_name="scotopia",
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
        )
        metadata = {"scotopia": kind, "version": str(VERSION), "description": description}
        helper.set_model_props(model, metadata | {"sha256": _digest(graph, description)})
        return model


def float_graph(rule: Rule) -> StepGraph:
    """One step of a float rule."""
    config = rule.config
    graph = StepGraph(config, "batch", "height", "width")
    tensors = {
        name: graph.constant(name, tensor.detach().cpu().numpy())
        for name, tensor in rule.state_dict().items()
    }
    graph.split("state", x=config.channels, old_sample=config.pixels, old_trace=config.pixels)

    def clip(name: str, tensor: str, to: str | None = None) -> str:
        if name in ("sample", "trace", "valid", "fresh"):
            return tensor
        ends = [graph.constant(str(end), end) for end in (0 if name == "trust" else -1, 1)]
        return graph.node("Clip", tensor, *ends, to=to or name)

    sample, trace, flicker = graph.latch("sample", "valid", "old_sample", "old_trace")
    padded = graph.perception("x", sample, trace, "valid", "old_trace", flicker, clip)
    if isinstance(rule.perceive, FilteredLayer):
        kernel = graph.node(
            "Einsum",
            tensors["perceive.mix"],
            tensors["perceive.filters"],
            to="perceive.weight",
            shape=(config.hidden, config.perceived, 3, 3),
            equation="hpf,pfyx->hpyx",
        )
    else:
        kernel = tensors["perceive.weight"]
    hidden_cells = graph.cells(config.hidden)
    bias = tensors["perceive.bias"]
    total = graph.node("Conv", padded, kernel, bias, to="hidden_sum", shape=hidden_cells)
    hidden = graph.node("Relu", total, to="hidden")
    weight, bias = tensors["update.weight"], tensors["update.bias"]
    update_cells = graph.cells(config.updates)
    update = graph.node("Conv", hidden, weight, bias, to="update", shape=update_cells)

    if config.kind == "residual":
        moved = clip("x", graph.node("Add", "x", update, to="moved_sum"), to="new_x")
    else:
        graph.split(update, candidate_sum=config.channels, gate_sum=config.channels)
        gate = graph.node("HardSigmoid", "gate_sum", to="gate", alpha=0.25, beta=0.5)
        candidate = clip("x", "candidate_sum", to="candidate")
        way = graph.node("Sub", candidate, "x", to="way")
        moved = graph.node("Add", "x", graph.node("Mul", gate, way, to="move"), to="new_x")
    graph.concat([moved, sample, trace], to="next_state")
    return graph


def import_onnx() -> Any:
    """Import the package `onnx`, which is optional.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise InputError(
            "ONNX models need the package onnx, which is not installed: "
            "run `pip install 'scotopia[onnx]'`"
        ) from error


def refuse_unstated(shape: Any, stated: frozenset[str]) -> None:
    """Raise InputError if a field that is not among the `stated` ones differs from its default.

    So a field that is newer than the export is refused, never dropped.
    """
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        if field.name not in stated and value != field.default:
            raise InputError(
                f"{field.name} {value} cannot be stated in ONNX: "
                f"export a rule with {field.name} {field.default}"
            )


def write_model(path: Path, model: Any) -> None:
    """Check a model and write it, whole or not at all."""
    import_onnx().checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, content)


def read_model(path: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    """Read a model of the given kind ("float rule" or "integer rule") and its description.

    Raises
    ------
    InputError
        If the file is missing, too large, truncated, no such model, or was changed.
    """
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
    metadata = {
        entry.key: entry.value
        for entry in model.metadata_props
        if isinstance(entry.value, str)  # what is no UTF-8, comes as bytes
    }
    found = metadata.get("scotopia")
    if found not in _READER:
        raise InputError(
            f"{path} is no ONNX model of a Scotopia rule: "
            f"give one written by export_onnx or export_qonnx"
        )
    if found != kind:
        raise InputError(
            f"{path} is a Scotopia {found}, not a Scotopia {kind}: read it with {_READER[found]}"
        )
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"model {path} has version {metadata.get('version')}, this Scotopia reads version "
            f"{VERSION}: export it again with this Scotopia"
        )
    description = metadata.get("description", "")
    if metadata.get("sha256") != _digest(model.graph, description):
        raise InputError(f"model {path} was changed after its export: export it again")
    try:
        return model, parse_description(description)
    except ValueError as error:
        raise InputError(
            f"model {path} has no valid description ({one_line(error)}): export it again"
        ) from error


def read_tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    """Float initializers of a model, by name.

    Raises
    ------
    ValueError
        If one has a shape that its numbers do not fill, or a number that is not finite.
    """
    tensors = {}
    for tensor in model.graph.initializer:
        # Only `raw_data`, which stands in the file itself: never a path to another one.
        if tensor.data_type == 1:
            shape = tuple(tensor.dims)
            if len(tensor.raw_data) != 4 * math.prod(shape):
                raise ValueError(f"{tensor.name} has {len(tensor.raw_data)} bytes for {shape}")
            array = np.frombuffer(tensor.raw_data, "<f4").reshape(shape)
            if not np.isfinite(array).all():
                raise ValueError(f"{tensor.name} is not finite")
            tensors[tensor.name] = array.astype(np.float32)
    return tensors


def check_same(path: Path, model: Any, graph: StepGraph) -> None:
    """Raise InputError unless `model` is what its own rule's graph is written as."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if model != graph.model(metadata["scotopia"], metadata["description"]):
        raise InputError(
            f"model {path} computes something else than the rule that it holds: export it again"
        )


def one_line(error: Exception) -> str:
    """Return an error's text without its line ends."""
    return " ".join(str(error).split())


def _digest(graph: Any, description: str) -> str:
    content = graph.SerializeToString(deterministic=True) + description.encode()
    return hashlib.sha256(content).hexdigest()
