"""The nodes of a QONNX model, written from a step graph, operation by operation."""

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval, derive
from scotopia.graph.operations import (
    AROUND,
    Add,
    Border,
    Channel,
    Constant,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Operation,
    Random,
    Select,
    Subtract,
    Window,
    Words,
    fractions,
)
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, required_bits
from scotopia.graph.step import StepGraph
from scotopia.model.onnx_model import check_names, import_onnx

#: Domain of QONNX's operators.
QONNX = "qonnx.custom_op.general"

#: `rounding_mode` of a Quant node, and what of a last bit is added before it. QONNX's HALF_UP and
#: HALF_DOWN go by magnitude: of its modes none has ties towards plus or minus infinity, but FLOOR
#: has after half a bit was added, and CEIL after it was taken off.
ROUNDING_MODE = {
    Rounding.TRN: ("FLOOR", 0.0),
    Rounding.TRN_ZERO: ("DOWN", 0.0),
    Rounding.RND: ("FLOOR", 0.5),
    Rounding.RND_ZERO: ("HALF_DOWN", 0.0),
    Rounding.RND_INF: ("HALF_UP", 0.0),
    Rounding.RND_MIN_INF: ("CEIL", -0.5),
    Rounding.RND_CONV: ("ROUND", 0.0),
}

#: What float32 holds exactly: integers below this.
EXACT = 1 << 24

_PAD_MODE: dict[Border, str] = {
    "zero": "constant",
    "replicate": "edge",
    "wrap": "wrap",
    "reflect": "reflect",
}

_PAIRWISE: dict[type[Operation], str] = {
    Add: "Add",
    Subtract: "Sub",
    Multiply: "Mul",
    Minimum: "Min",
    Maximum: "Max",
    Less: "Less",
    Select: "Where",
}


class QonnxGraph:
    """An ONNX graph in the making, operation by operation; a tensor is a name.

    Names of its own have a full stop, those of inputs have none.
    """

    def __init__(self, graph: StepGraph, height: int, width: int) -> None:
        self.onnx = import_onnx()
        self.graph = graph
        #: From any codes of the formats, so that the model is exact whatever it is given.
        self.ranges = derive(graph)
        self.size = height, width
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bits: set[str] = set()  # tensors of ONNX's type BOOL
        self.made: list[str] = []  # tensor of each operation
        self.gathered: dict[Words, str] = {}
        self.fine: dict[int, int] = {}  # of sums that are stated as two, see `_fine_bits`

    def model(self) -> Any:
        """Return the model."""
        graph, helper = self.graph, self.onnx.helper
        given = {"state": len(graph.channels)} | dict.fromkeys(check_names(graph.inputs), 1)
        if draws := sum(operation.count for _, operation in graph.of_kind(Random)):
            given["noise"] = draws
        self.shapes |= {name: self.cells(planes) for name, planes in given.items()}
        drawn = 0
        for index, operation in enumerate(graph.operations):
            name = f"{index}.{type(operation).__name__.lower()}"
            match operation:
                case Channel():
                    self.made.append(self.channels("state", name, graph.words(index)))
                case Input(names=names):
                    planes = self.concatenate(list(names), f"{name}.given")
                    self.made.append(self.channels(planes, name, graph.words(index)))
                case Random(bits=bits):
                    taken = self.lanes("noise", drawn, len(bits), f"{name}.given")
                    drawn += len(bits)
                    formats = [QFormat(0, count, signed=False) for count in bits]
                    self.made.append(self.quant_all(taken, name, formats))
                case _:
                    self.made.append(self.compute(index, operation, name))
        last = self.gather(graph.outputs)
        self.node("Identity", last, out="next_state", shape=self.shapes[last])
        infos = {
            name: helper.make_tensor_value_info(
                name,
                self.onnx.TensorProto.BOOL if name in self.bits else self.onnx.TensorProto.FLOAT,
                shape,
            )
            for name, shape in self.shapes.items()
            if name not in self.constants
        }
        made = helper.make_graph(
            self.nodes,
            "step",
            [infos.pop(name) for name in given],
            [infos.pop("next_state")],
            list(self.constants.values()),
            value_info=list(infos.values()),
        )
        # The oldest operator set that has the border, for the sake of other tools.
        opsets = [
            helper.make_opsetid("", 19 if "wrap" in graph.borders else 13),
            helper.make_opsetid(QONNX, 1),
        ]
        version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        return helper.make_model(
            made, producer_name="scotopia", opset_imports=opsets, ir_version=version
        )

    # Parts of a model.

    def cells(self, planes: int) -> tuple[int, ...]:
        """Shape of so many words of all cells."""
        return 1, planes, *self.size

    def constant(self, name: str, numbers: ArrayLike, dtype: Any = np.float32) -> str:
        """Add an initializer, unless there is one of that name."""
        if name not in self.constants:
            exact = np.asarray(numbers)
            with np.errstate(over="ignore"):
                array = exact.astype(dtype)
            if not (array == exact).all():
                worst = exact[array != exact].ravel()[0]
                raise InputError(f"{worst!r} of {name} is no float32: quantize with fewer bits")
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
            self.shapes[name] = array.shape
        return name

    def node(
        self, operator: str, *inputs: str, out: str, shape: tuple[int, ...], **attributes: Any
    ) -> str:
        """Add a node that makes tensor `out`."""
        self.nodes.append(
            self.onnx.helper.make_node(operator, inputs, [out], name=out, **attributes)
        )
        self.shapes[out] = shape
        return out

    def lanes(self, tensor: str, first: int, count: int, to: str) -> str:
        """Take some words of a tensor."""
        if self.shapes[tensor][1] == count:
            return tensor
        ends = [
            self.constant(f"at.{place}", [place], np.int64) for place in (first, first + count, 1)
        ]
        return self.node("Slice", tensor, *ends, out=to, shape=self.cells(count))

    def concatenate(self, tensors: list[str], to: str) -> str:
        """Put tensors' words behind each other."""
        if len(tensors) == 1:
            return tensors[0]
        count = sum(self.shapes[name][1] for name in tensors)
        return self.node("Concat", *tensors, out=to, shape=self.cells(count), axis=1)

    def gather(self, words: Words) -> str:
        """Tensor of words, (1, L, H, W)."""
        if words not in self.gathered:
            name = f"words.{len(self.gathered)}"
            parts = []
            for number, (index, lanes) in enumerate(self.graph.runs(words)):
                operation, part = self.graph.operations[index], f"{name}.{number}"
                if isinstance(operation, Constant):
                    values = np.array(operation.values[lanes])
                    tensor = self.constant(f"{part}.values", _column(values))
                    parts.append(self.expand(tensor, len(values), part))
                else:
                    count = lanes.stop - lanes.start
                    parts.append(self.lanes(self.made[index], lanes.start, count, part))
            once = len(words) > 1 and len(set(words)) == 1
            self.gathered[words] = (
                self.expand(parts[0], len(words), name) if once else self.concatenate(parts, name)
            )
        return self.gathered[words]

    def expand(self, tensor: str, count: int, to: str) -> str:
        """Repeat words (1, L or 1, H or 1, W or 1) to all cells, and one to `count`."""
        shape = self.cells(count)
        sides = self.constant(f"cells.{count}", shape, np.int64)
        return self.node("Expand", tensor, sides, out=to, shape=shape)

    def is_zero(self, words: Words) -> bool:
        """Whether words are the constant 0."""
        made = [self.graph.made_by(word) for word in words]
        return all(isinstance(one, Constant) and one.values[lane] == 0 for one, lane in made)

    def padded(self, tensor: str, border: Border, to: str) -> str:
        """Surround a tensor by what lies beyond the border."""
        pads = self.constant("border.pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        height, width = self.size
        shape = (1, self.shapes[tensor][1], height + 2, width + 2)
        return self.node("Pad", tensor, pads, out=to, shape=shape, mode=_PAD_MODE[border])

    # Numbers.

    def require_exact(self, word: int, found: Interval, more: int = 0) -> None:
        """Raise InputError unless float32 holds a word's codes, and `more` of its last bits."""
        reach = max(-found.lowest, found.highest) + more
        if reach >= EXACT:
            raise InputError(
                f"{self.graph.name(word)} can reach {reach}, float32 is exact below {EXACT}: "
                "quantize with fewer bits"
            )

    def quant(
        self,
        tensor: str,
        to: str,
        scale: NDArray[np.float64],
        bits: int,
        signed: bool = True,
        narrow: bool = False,
        mode: str = "ROUND",
    ) -> str:
        """Add a Quant node; the scale's shape fits the tensor's."""
        return self.node(
            "Quant",
            tensor,
            self.constant(f"{to}.scale", scale),
            self.constant("zero.point", 0.0),
            self.constant(f"bits.{bits}", float(bits)),
            out=to,
            shape=self.shapes[tensor],
            domain=QONNX,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode=mode,
        )

    def channels(self, tensor: str, to: str, words: range) -> str:
        """State the formats of what is given."""
        formats = [self.graph.formats[word] for word in words]
        for word, format in zip(words, formats, strict=True):
            self.require_exact(word, Interval.of(format))
        return self.quant_all(tensor, to, formats)

    def quant_all(
        self,
        tensor: str,
        to: str,
        formats: list[QFormat],
        mode: str = "ROUND",
        symmetric: bool = False,
    ) -> str:
        """Round and clamp words to their formats.

        By Quant nodes with a scale by word, but one width: one for each run of equal widths.
        """
        for format in formats:
            if format.signed and format.bits == 1:
                raise InputError(
                    f"format {format} has 1 bit, which QONNX takes for -1 and 1: choose others"
                )
        runs = [list(run) for _, run in groupby(formats, lambda one: (one.bits, one.signed))]
        parts, first = [], 0
        for number, run in enumerate(runs):
            suffix = f".{number}" if len(runs) > 1 else ""
            part = self.lanes(tensor, first, len(run), f"{to}.given{suffix}")
            first += len(run)
            bits, signed = run[0].bits, run[0].signed
            units = _column(_units(run))
            parts.append(
                self.quant(part, f"{to}{suffix}", units, bits, signed, symmetric and signed, mode)
            )
        return self.concatenate(parts, to)

    # Operations.

    def compute(self, index: int, operation: Operation, name: str) -> str:
        """Add the nodes of an operation."""
        words = self.graph.words(index)
        if not isinstance(operation, Fit | Linear):
            for word in words:
                self.require_exact(word, self.ranges.words[word])
        match operation:
            case Constant():
                return ""  # written where it is read
            case Linear():
                return self.linear(index, operation, name)
            case Window(a=a, largest=largest, border=border):
                return self.window(self.gather(a), largest, border, name)
            case Fit():
                return self.fit(words, operation, name)
            case Maximum(a=a, b=b) if self.is_zero(b):
                tensor = self.gather(a)
                return self.node("Relu", tensor, out=name, shape=self.shapes[tensor])
        shape = self.cells(operation.count)
        operands = [self.gather(words) for words in operation.arguments]
        operator = _PAIRWISE[type(operation)]
        if isinstance(operation, Select):
            condition = operands[0]
            bit = f"{name}.bit"
            kind = self.onnx.TensorProto.BOOL
            self.node("Cast", condition, out=bit, shape=self.shapes[condition], to=kind)
            self.bits.add(bit)
            operands[0] = bit
        if not isinstance(operation, Less):
            return self.node(operator, *operands, out=name, shape=shape)
        self.bits.add(self.node(operator, *operands, out=f"{name}.bit", shape=shape))
        kind = self.onnx.TensorProto.FLOAT
        return self.node("Cast", f"{name}.bit", out=name, shape=shape, to=kind)

    def window(self, tensor: str, largest: bool, border: Border, name: str) -> str:
        """Add the largest of nine cells, or the smallest."""
        shape = self.shapes[tensor]
        if not largest:
            tensor = self.node("Neg", tensor, out=f"{name}.negative", shape=shape)
        seen = self.padded(tensor, border, f"{name}.padded")
        to = name if largest else f"{name}.largest"
        found = self.node("MaxPool", seen, out=to, shape=shape, kernel_shape=[3, 3], strides=[1, 1])
        return found if largest else self.node("Neg", found, out=name, shape=shape)

    def fit(self, words: range, fit: Fit, name: str) -> str:
        """Add rounding, and then what brings words into range."""
        mode, half = ROUNDING_MODE[fit.rounding]
        known = self.graph.fractions
        added = np.zeros(fit.count)
        for lane, (source, format) in enumerate(zip(fit.a, fit.formats, strict=True)):
            shift = known[source] - format.frac_bits
            if half and shift > 0:
                added[lane] = np.ldexp(half, -format.frac_bits)
            if not self.fine.get(source):
                more = (1 << shift) >> 1 if shift > 0 else 0
                self.require_exact(source, self.ranges.words[source], more)
        tensor = self.gather(fit.a)
        shape = self.shapes[tensor]
        if added.any():
            halves = self.constant(f"{name}.half", _column(added))
            tensor = self.node("Add", tensor, halves, out=f"{name}.to_round", shape=shape)
        if fit.overflow is Overflow.WRAP:
            return self.wrap(tensor, words, fit, name, mode)
        symmetric = fit.overflow is Overflow.SAT_SYM
        return self.quant_all(tensor, name, list(fit.formats), mode, symmetric)

    def wrap(self, tensor: str, words: range, fit: Fit, name: str, mode: str) -> str:
        """Round, and drop the bits above the formats': v - span * floor((v - lowest) / span)."""
        units, shape = _units(list(fit.formats)), self.shapes[tensor]
        bits = 0
        for word, format in zip(words, fit.formats, strict=True):
            reached = self.ranges.rounded[word]
            self.require_exact(word, reached, -format.lowest)
            bits = max(bits, reached.bits, 2)
        lowest = units * [format.lowest for format in fit.formats]
        span = units * [2.0**format.bits for format in fit.formats]
        named = {"lowest": lowest, "share": 1 / span, "span": span}
        constants = {
            key: self.constant(f"{name}.{key}", _column(numbers)) for key, numbers in named.items()
        }
        rounded = self.quant(tensor, f"{name}.rounded", _column(units), bits, mode=mode)
        above = self.node("Sub", rounded, constants["lowest"], out=f"{name}.above", shape=shape)
        turns = self.node("Mul", above, constants["share"], out=f"{name}.turns", shape=shape)
        whole = self.node("Floor", turns, out=f"{name}.whole", shape=shape)
        beyond = self.node("Mul", whole, constants["span"], out=f"{name}.beyond", shape=shape)
        return self.node("Sub", rounded, beyond, out=name, shape=shape)

    def linear(self, index: int, linear: Linear, name: str) -> str:
        """Add a convolution by quantized weights, whose sums are exact.

        A sum that float32 does not hold is stated as two: of the lowest bits of weights and bias,
        and of the others, in multiples of a larger unit. Of the first, the second gets whole units,
        and half a unit where something is left: of that, rounding asks no more.
        """
        words, known = self.graph.words(index), self.graph.fractions
        weight, bias = self.graph.codes_of(index)
        of_sums = np.array([known[word] for word in words])
        of_inputs = np.array([known[word] for word in linear.a])
        tensor = self.gather(linear.a)
        if weight.shape[2] == AROUND:
            tensor = self.padded(tensor, linear.border, f"{name}.padded")
        fine = np.array(
            [self._fine_bits(word, *of) for word, *of in zip(words, weight, bias, strict=True)]
        )
        shift = of_inputs[:, None] - of_sums[:, None, None]

        def convolved(weight: IntArray, bias: IntArray, to: str) -> str:
            kernels = np.ldexp(weight.astype(float), shift)
            return self.convolution(tensor, kernels, np.ldexp(bias.astype(float), -of_sums), to)

        if not fine.any():
            return convolved(weight, bias, name)
        self.fine.update(zip(words, fine.tolist(), strict=True))
        low_bits = (1 << fine) - 1
        low_weight, low_bias = weight & low_bits[:, None, None], bias & low_bits
        low = convolved(low_weight, low_bias, f"{name}.fine")
        high = convolved(weight - low_weight, bias - low_bias, f"{name}.coarse")
        unit, shape = np.ldexp(1.0, fine - of_sums), self.cells(linear.count)
        carry = self.quant(low, f"{name}.carry", _column(unit), EXACT.bit_length(), mode="FLOOR")
        left = self.node("Sub", low, carry, out=f"{name}.left", shape=shape)
        half = self.constant(f"{name}.half_unit", _column(np.where(fine, unit / 2, 0)))
        sign = self.node("Sign", left, out=f"{name}.has_left", shape=shape)
        sticky = self.node("Mul", sign, half, out=f"{name}.sticky", shape=shape)
        carried = self.node("Add", high, carry, out=f"{name}.carried", shape=shape)
        return self.node("Add", carried, sticky, out=name, shape=shape)

    def convolution(
        self, tensor: str, weight: NDArray[np.float64], bias: NDArray[np.float64], to: str
    ) -> str:
        """Add a convolution by weights (O, I, K) and biases (O,)."""
        side = 3 if weight.shape[2] == AROUND else 1
        parameters = []
        for part, numbers in (("weight", weight), ("bias", bias)):
            rows = numbers.reshape(len(numbers), -1)
            finest = np.where(rows, fractions(rows), -1074).max(1, initial=-1074)
            finest[~rows.any(1)] = 0
            unit = np.ldexp(1.0, -finest)
            codes = rows / unit[:, None]
            # One bit would mean -1 and +1.
            bits = max(2, required_bits(int(codes.min(initial=0)), int(codes.max(initial=0))))
            shaped = numbers.reshape(*weight.shape[:2], side, side) if part == "weight" else numbers
            parameters.append(
                self.quant(
                    self.constant(f"{to}.{part}", shaped),
                    f"{to}.{part}.quant",
                    unit.reshape(-1, *(1,) * (shaped.ndim - 1)),
                    bits,
                )
            )
        return self.node("Conv", tensor, *parameters, out=to, shape=self.cells(len(bias)))

    def _fine_bits(self, word: int, weight: IntArray, bias: np.int64) -> int:
        """Lowest bits of a sum that are summed on their own: 0 where all fit.

        As few as will do, and fewer than rounding drops, so that what is left of them tells
        rounding no more than whether it is 0.

        Raises
        ------
        InputError
            If two sums in float32 cannot be exact.
        """
        index, _ = self.graph.origin(word)
        ends = [self.ranges.words[one].ends for one in self.graph.operations[index].arguments[0]]
        largest = np.abs(np.array(ends, object).reshape(-1, 2)).max(1, initial=0)
        largest = np.repeat(largest[:, None], weight.shape[1], 1)
        dropped = self._dropped(word)

        def bounds(fine: int) -> tuple[int, int]:
            """Largest magnitudes of both sums; of two, the upper in halves of its unit.

            With the carry, and the half that rounding adds.
            """
            low_bits = (1 << fine) - 1
            low = int(((weight & low_bits) * largest).sum()) + (int(bias) & low_bits)
            high = int((np.abs(weight >> fine) * largest).sum()) + abs(int(bias) >> fine)
            half = (1 << max(0, dropped - fine)) >> 1
            if fine == 0:
                return 0, high + half
            return low, 2 * (high + (low >> fine) + 1 + half) + 1

        for fine in range(max(1, dropped)):
            if max(bounds(fine)) < EXACT:
                return fine
        raise InputError(
            f"{self.graph.name(word)} can sum up to {bounds(0)[1]}, which is more than two sums "
            f"in float32, exact below {EXACT}, can hold: quantize with fewer bits"
        )

    def _dropped(self, word: int) -> int:
        """Return how many of a word's bits all that reads it drops."""
        graph = self.graph
        if word in graph.outputs:
            return 0
        found = []
        for index in graph.readers[word]:
            reader = graph.operations[index]
            if not isinstance(reader, Fit):
                return 0
            found += [
                graph.fractions[word] - format.frac_bits
                for source, format in zip(reader.a, reader.formats, strict=True)
                if source == word
            ]
        return max(0, min(found, default=0))


def _units(formats: list[QFormat]) -> NDArray[np.float64]:
    return np.ldexp(1.0, [-format.frac_bits for format in formats])


def _column(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return numbers.reshape(1, -1, 1, 1)
