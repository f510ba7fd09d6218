"""Goes through the operations of a step in PyTorch, and writes them down as a step graph."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, OutputKind

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Channel, Input, Words

from . import margins, matrices, pointwise, shapes, sums
from .calls import GRID, LAYOUTS, Call
from .export import Program, mapped
from .fields import BATCH, COLUMNS, ROWS, Field, size
from .handlers import HANDLERS, REFUSED
from .refusal import Refusal, place, refused
from .writer import Const, Operand, Writer

assert margins and matrices and pointwise and shapes and sums  # they fill the table

_IGNORED = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range")

#: What differs each time, although it depends on nothing.
_DRAWS = ("bernoulli", "uniform", "randn", "normal", "exponential", "multinomial", "randperm")

_UNKNOWN = (
    "is no operation that a step graph has",
    "write it with convolutions, sums, products, comparisons and torch.where",
)


class Walk:
    """Goes through what a module does, and writes it down."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        program: Program,
        call: Call,
        lines: int,
    ) -> None:
        self.exported, self.program, self.call = exported, program, call
        self.writer = Writer(grid=GRID, lines=lines)
        self.values: dict[fx.Node, Any] = {}

    def run(self, where: str) -> Words:
        """Return the words that are the next state."""
        names = self.call.channels
        state = Field(
            self._given(Channel(names, (None,) * len(names)), names),
            self.call.dims(len(names)),
            self.program.dtype,
        )
        users = iter([state, *self._arguments()])
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is InputKind.USER_INPUT:
                    self.values[node] = next(users)
                else:
                    self.values[node] = self._tensor(node, spec)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(self.exported.graph_module, node.target)
        (results,) = next(node.args for node in self.exported.graph.nodes if node.op == "output")
        kinds = [spec.kind for spec in self.exported.graph_signature.output_specs]
        returned = [
            result
            for result, kind in zip(results, kinds, strict=True)
            if kind is OutputKind.USER_OUTPUT
        ]
        if len(returned) != 1:
            raise InputError(
                f"{where} returns {len(returned)} tensors: say which is the state, by output"
            )
        last = returned[0]
        line = place(last.meta.get("stack_trace")) if isinstance(last, fx.Node) else ""
        return self._state(self.values.get(last), f"{line}{where}")

    def _given(self, operation: Channel | Input, names: Sequence[str]) -> Any:
        words = self.writer.append(operation)
        self.writer.names.update(zip(words.tolist(), names, strict=True))
        return words.reshape([1 if axis else len(names) for axis in LAYOUTS[self.call.layout]])

    def _arguments(self) -> Iterator[Operand]:
        for name, count in self.call.inputs.items():
            words = self.call.input_words(name)
            given = self._given(Input(tuple(words), (None,) * count), words)
            yield Field(given, self.call.dims(count), self.program.dtype)
        for name, chance in self.call.random.items():
            self.writer.label = name
            drawn = self.writer.draw(self.call.dims(1))
            if chance is not None:
                drawn = replace(self.writer.less(drawn, float(chance)), dtype=torch.float32)
            yield drawn

    def _tensor(self, node: fx.Node, spec: Any) -> Const:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            self.program.given[node.name] = spec.target
            value = self.program.tensors[spec.target].detach()
            return Const(value, lambda values, name=node.name: values[name])  # type: ignore[misc]
        return Const(self.exported.constants[spec.target].detach())

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        arguments, options = _normalized(target, node.args, node.kwargs)
        arguments = fx.node.map_arg(arguments, lambda n: self.values[n])
        options = fx.node.map_arg(options, lambda n: self.values[n])
        if target is operator.getitem:
            item = arguments[0][arguments[1]]
            if item is None:
                self._refuse(node, "argmax", Refusal(*REFUSED["argmax"]))
            return item
        name = target._schema.name.removeprefix("aten::") if hasattr(target, "_schema") else ""
        if name in _IGNORED:
            return None
        self.writer.label = _label(node)
        self.writer.place = place(node.meta.get("stack_trace"))
        what = name or getattr(target, "__name__", str(target))
        try:
            if name in ("rand", "randint", "randint_like"):
                return self._draw(name, arguments)
            if not _holds_field((arguments, options)) and name not in _DRAWS:
                return self._constant(node, target, arguments, options)
            if name not in HANDLERS:
                raise Refusal(*REFUSED.get(name, _UNKNOWN))
            result = HANDLERS[name](self.writer, *arguments, **options)
            if name in ("rand_like", "bernoulli", "uniform"):
                _check_drawn(self.writer.draws[-1])
            return result
        except Refusal as refusal:
            self._refuse(node, what, refusal)
        except (AssertionError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            unknown = Refusal(
                f"is called in a way that is not known ({type(error).__name__}: {error})",
                "write it otherwise",
            )
            raise refused(self.writer.place, what, unknown) from error

    def _refuse(self, node: fx.Node, what: str, refusal: Refusal) -> None:
        raise refused(place(node.meta.get("stack_trace")), what, refusal)

    def _draw(self, name: str, arguments: Sequence[Any]) -> Field:
        levels = 1
        if name == "rand":
            dims = self.writer.cells(arguments[0])
        else:
            *ends, shape = arguments if name == "randint" else (*arguments[1:], arguments[0])
            low, high = ends if len(ends) == 2 else (0, *ends)
            levels = high - low
            if low or levels.bit_count() != 1 or levels > 1 << 16:
                raise Refusal(
                    f"draws integers from {low} to {high - 1}", "draw from 0 to a power of two"
                )
            dims = shape.dims if isinstance(shape, Field) else self.writer.cells(shape)
        drawn = self.writer.draw(dims, levels.bit_length() - 1 if name != "rand" else None)
        _check_drawn(drawn)
        if levels == 1:
            return drawn
        self.writer.forget_random(drawn)
        return self.writer.product(drawn, float(levels))

    def _constant(self, node: fx.Node, target: Any, arguments: Any, options: dict[str, Any]) -> Any:
        """Compute what depends on parameters alone."""

        def value(one: Any) -> Any:
            return one.value if isinstance(one, Const) else one

        result = target(*mapped(arguments, value), **mapped(options, value))
        changes = any(isinstance(c, Const) and c.formula for c in _leaves((arguments, options)))
        if changes:
            self.program.nodes.append((node.name, target, arguments, options))

        def wrap(part: Any, index: int | None) -> Any:
            if not isinstance(part, Tensor):
                return part
            if not changes:
                return Const(part.detach())
            name = node.name
            if index is None:
                return Const(part.detach(), lambda values: values[name])
            return Const(part.detach(), lambda values: values[name][index])

        if isinstance(result, list | tuple):
            return [wrap(part, i) for i, part in enumerate(result)]
        return wrap(result, None)

    def _state(self, result: Any, where: str) -> Words:
        count = len(self.call.channels)
        if not isinstance(result, Field):
            raise InputError(f"{where} returns no state: return a tensor like its first argument")
        axes = LAYOUTS[self.call.layout]
        order = [axes.index(axis) for axis in (BATCH, None, ROWS, COLUMNS)]
        sizes = [size(dim) for dim in self.call.dims(count)]
        if list(result.shape) != sizes:
            found = "x".join(map(str, result.shape))
            if len(result.dims) == 4 and [*result.shape].count(count) == 0:
                channel = result.shape[axes.index(None)]
                raise InputError(
                    f"{where} returns {channel} channels of {count}: return the whole next state"
                )
            raise InputError(
                f"{where} returns {found} for a state of {'x'.join(map(str, sizes))}: return the "
                "next state, of the same shape"
            )
        moved = result.permute(order)
        layout = [[a.axis for a in dim if a.axis] for dim in moved.dims]
        wanted = [[BATCH], [], [ROWS], [COLUMNS]]
        if any(found not in (axes, []) for found, axes in zip(layout, wanted, strict=True)):
            raise InputError(f"{where} returns rows and columns exchanged: return them as given")
        return tuple(moved.merged(1).words.ravel().tolist())


def _check_drawn(drawn: Field) -> None:
    if not {ROWS, COLUMNS} <= drawn.axes.keys():
        raise Refusal(
            "draws the same number for many cells", "draw one for each cell: (B, 1, H, W)"
        )


def _normalized(target: Any, arguments: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Put all arguments that have a place there."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return tuple(arguments), dict(options)
    given, left = list(arguments), dict(options)
    for argument in schema.arguments[len(given) :]:
        if argument.kwarg_only:
            break
        if argument.name in left:
            given.append(left.pop(argument.name))
        elif any(later.name in left for later in schema.arguments if not later.kwarg_only):
            given.append(argument.default_value)
        else:
            break
    return tuple(given), left


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from _leaves(part)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    else:
        yield tree


def _holds_field(tree: Any) -> bool:
    return any(isinstance(leaf, Field) for leaf in _leaves(tree))


def _label(node: fx.Node) -> str:
    """Name a node by the layer that it is, or by its operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack:
        path, kind = stack[-1]
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if kind.startswith("torch.nn.modules"):
            plain = str(path).removeprefix("L['self'].").removeprefix("module.")
            if plain:
                return plain
    return node.name
