"""A step as PyTorch takes it apart, and what it computes of its parameters alone."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from traceback import StackSummary
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.fx.proxy import TracerBase

from scotopia.graph.errors import InputError

from .calls import Call
from .fields import size
from .refusal import is_ours, place_of_error
from .writer import Const


class Step(nn.Module):
    """The method that is the step, as a module of its own."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, state: Tensor, *tensors: Tensor) -> Any:
        """Do the step."""
        given = dict(zip(self.call.tensors, tensors, strict=True)) | dict(self.call.constants)
        result = getattr(self.module, self.call.method)(state, **given)
        output = self.call.output
        if output is None:
            return result
        if isinstance(output, str) and not isinstance(result, Mapping):
            return getattr(result, output)
        return result[output]


@dataclass
class Program:
    """What a module computes of its parameters and buffers alone, in order."""

    step: nn.Module
    dtype: torch.dtype
    given: dict[str, str] = field(default_factory=dict)
    nodes: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, by name."""
        named = self.step.named_parameters(remove_duplicate=False)
        return {**dict(named), **dict(self.step.named_buffers(remove_duplicate=False))}

    def values(self) -> dict[str, Any]:
        """Compute all of it anew, by the name of its node."""
        tensors = self.tensors
        found: dict[str, Any] = {node: tensors[name] for node, name in self.given.items()}
        for name, target, arguments, options in self.nodes:

            def value(one: Any) -> Any:
                return one.at(found) if isinstance(one, Const) else one

            found[name] = target(*mapped(arguments, value), **mapped(options, value))
        return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def type_of(module: nn.Module) -> torch.dtype:
    """Return the type of a module's numbers.

    Raises
    ------
    InputError
        If they are not on the CPU.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "cpu":
            raise InputError(
                f"{type(module).__name__} is on {tensor.device}: move it to the CPU first"
            )
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def export(
    step: Step, call: Call, dtype: torch.dtype, where: str
) -> tuple[Program, torch.export.ExportedProgram]:
    """Take a step apart.

    Raises
    ------
    InputError
        If it cannot be run on an example, or branches on what the cells hold.
    """
    counts = [len(call.channels), *call.inputs.values(), *(1 for _ in call.random)]
    examples = [
        torch.zeros([size(dim) for dim in call.dims(count)], dtype=dtype) for count in counts
    ]
    try:
        with _naming_all_lines(), _silent():
            exported = torch.export.export(step, tuple(examples))
            exported = exported.run_decompositions({})
    except Exception as error:
        raise _failed(error, where, examples) from error
    for spec in exported.graph_signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise InputError(
                f"{where} writes to {_plain(spec.target)}, which the next step would read: make it "
                "a channel of the state"
            )
    return Program(step, dtype), exported


@contextmanager
def _naming_all_lines() -> Iterator[None]:
    """Let operations keep all lines of the user's that led to them, not those of `forward` alone.

    PyTorch says that this method may be overridden. One that has it not names fewer lines.
    """
    name = "_filter_traceback_frames"
    before = getattr(TracerBase, name, None)

    def users(tracer: object, frames: StackSummary) -> StackSummary:
        return StackSummary.from_list([one for one in frames if not is_ours(one.filename)])

    if before is not None:
        setattr(TracerBase, name, users)
    try:
        yield
    finally:
        if before is not None:
            setattr(TracerBase, name, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the user what PyTorch logs, warns of and prints about its own working."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain(name: str | None) -> str:
    return (name or "").removeprefix("module.")


def _failed(error: Exception, where: str, examples: Sequence[Tensor]) -> InputError:
    """Say in one line why a step could not be taken apart."""
    causes: list[BaseException] = [error]
    while (further := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(further)
    cause = next((one for one in causes if place_of_error(one)), error)
    line = place_of_error(cause)
    text = str(cause).strip()
    kind = type(cause).__name__
    if "DataDependent" in kind or "data-dependent" in text or "data dependent" in text.lower():
        return InputError(
            f"{line}{where} branches on what the cells hold, or takes a number out of them: use "
            "torch.where, or a mask; all cells do the same"
        )
    first = next((part for part in text.splitlines() if part.strip()), kind)
    shapes = " and ".join("x".join(map(str, one.shape)) for one in examples)
    return InputError(
        f"{line}{where} cannot be traced with tensors of {shapes} ({kind}: {first.strip()}): "
        "make it a function of tensors of any grid size on the CPU"
    )


def mapped(tree: Any, function: Any) -> Any:
    """Apply a function to all leaves of lists, tuples and dicts."""
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(part, function) for part in tree)
    if isinstance(tree, dict):
        return {key: mapped(part, function) for key, part in tree.items()}
    return function(tree)
