"""Float rules as ONNX models, by PyTorch's own exporter.

A model is one step, for any number of grids of any size; the caller runs it `steps_per_frame` times
a frame. Needs the packages `onnx` and `onnxscript`.
"""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Constant, Linear
from scotopia.graph.surroundings import Event, Initial

from .float_rule import FloatRule
from .interpret import Interpreter
from .onnx_model import check_names, describe, import_onnx, with_metadata, write_model
from .rule import Rule

#: Operator set: the oldest that PyTorch writes, for the sake of other tools.
OPSET = 18


def export_onnx(rule: Rule | FloatRule, path: Path) -> None:
    """Write one step of a float rule to an ONNX model, whole or not at all.

    Inputs are `state` (B, C, H, W), each of the rule's inputs under its name, (B, 1, H, W), and, if
    it draws random numbers, `noise` (B, R, H, W) in [0, 1), to be drawn anew for each step. Output
    is `next_state`. All are float32; B, H and W are free. A `Rule` has (B, P, H, W) of `sample` and
    `valid` and, if cells fire at random, `fired` (B, 1, H, W) in place of noise: see
    `Rule.forward`. The metadata hold JSON of what it takes to run the step: names of the channels,
    steps a frame, events, first state, and how the rule was trained.

    Raises
    ------
    InputError
        If the rule computes on quantized numbers, a weight is not finite or no float32, an input
        has a name that the model needs, or one of the packages is missing.
    """
    import_onnx("onnxscript")
    if isinstance(rule, Rule):
        module, arguments, description = _scotopic(rule)
    else:
        module, arguments, description = _of_graph(rule)
    for name, tensor in module.state_dict().items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise InputError(f"{name} of the rule is not finite in float32: train it again")
    free = {0: "batch", 2: "height", 3: "width"}
    axes = {axis: torch.export.Dim(name) for axis, name in free.items()}
    # Sizes that differ and are not 1: what is equal, the exporter may take to be the same.
    examples = {name: torch.zeros(2, planes, 5, 7) for name, planes in arguments.items()}
    with _silence():
        program = torch.onnx.export(
            module.eval(),
            tuple(examples.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=["next_state"],
            dynamic_shapes=_like(module, [axes for _ in examples]),
        )
    assert program is not None
    model = program.model_proto
    _forget_places(model)
    write_model(path, with_metadata(model, "float rule", description))


class _Step(nn.Module):
    """One step of a graph, with its numbers as buffers."""

    def __init__(self, rule: FloatRule) -> None:
        super().__init__()
        self.run = Interpreter(rule.graph)
        self.inputs = tuple(rule.graph.inputs)
        self.numbers: dict[int, list[str]] = {}
        for index, operation in enumerate(rule.graph.operations):
            if isinstance(operation, Linear | Constant):
                fields = ("weight", "bias") if isinstance(operation, Linear) else ("values",)
                self.numbers[index] = [f"{field}{index}" for field in fields]
                for field, name in zip(fields, self.numbers[index], strict=True):
                    self.register_buffer(name, torch.tensor(getattr(operation, field)).float())

    def forward(self, state: Tensor, *given: Tensor) -> Tensor:
        """Do one step; see `export_onnx` for what is given."""
        planes = [one[:, 0] for one in given[: len(self.inputs)]]
        inputs = dict(zip(self.inputs, planes, strict=True))
        buffers = dict(self.named_buffers())
        weights = {
            index: tuple(buffers[name] for name in names) for index, names in self.numbers.items()
        }
        return self.run(state, inputs, given[-1] if self.run.random else None, weights)


def _scotopic(rule: Rule) -> tuple[nn.Module, dict[str, int], dict[str, Any]]:
    """Return what runs a step, planes of what it is given, by name, and its description."""
    if type(rule) is not Rule:
        raise InputError(
            f"{type(rule).__name__} computes on quantized numbers: export the float rule, or "
            "quantize it and export that with export_qonnx"
        )
    config = rule.config
    names = config.channel_names
    planes = {"state": len(names), "sample": config.pixels, "valid": config.pixels}
    if config.fire_rate < 1:
        planes["fired"] = 1
    description = describe(
        names,
        config.steps_per_frame,
        (Event("sample", "valid"),),
        Initial.zeros(len(names)),
        rule.training_record,
    )
    return rule, planes, description | {"config": dataclasses.asdict(config)}


def _of_graph(rule: FloatRule) -> tuple[nn.Module, dict[str, int], dict[str, Any]]:
    module = _Step(rule)
    channels = tuple(rule.graph.channels)
    planes = {"state": len(channels)} | dict.fromkeys(check_names(rule.graph.inputs), 1)
    if module.run.random:
        planes["noise"] = module.run.random
    description = describe(channels, rule.steps_per_frame, rule.events, rule.initial, rule.training)
    return module, planes, description


def _forget_places(model: Any) -> None:
    """Remove what the exporter notes of where it was run: paths of source files."""
    graph = model.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for one in (graph, *(one for part in parts for one in part)):
        one.ClearField("metadata_props")


def _like(module: nn.Module, each: list[Any]) -> tuple[Any, ...]:
    """Return something for each argument of a module, in the shape of its signature."""
    return (each[0], tuple(each[1:])) if isinstance(module, _Step) else tuple(each)


@contextmanager
def _silence() -> Iterator[None]:
    """Let the exporter say nothing of packages that it would use if they were there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
