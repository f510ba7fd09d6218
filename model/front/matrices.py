"""What sums up, or compares, the channels of a cell: matrices, einsum, means."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from scotopia.graph.operations import Add, Maximum, Minimum

from .fields import WHOLE_GRID, Field, size
from .handlers import const, field, handles
from .refusal import Refusal
from .writer import Const, Operand, Writer


@handles("linear")
def _linear(writer: Writer, a: Operand, weight: Operand, bias: Operand | None = None) -> Field:
    a, matrix = field(a, "an argument"), const(weight, "weights")
    last = len(a.dims) - 1
    found = writer.sum_with(a, matrix, [last])
    return found if bias is None else writer.pairwise(Add, found, const(bias, "biases"))


@handles("mm", "matmul", "bmm")
def _matmul(writer: Writer, a: Operand, b: Operand) -> Field:
    ranks = [
        len(x.dims) if isinstance(x, Field) else const(x, "a matrix").value.ndim for x in (a, b)
    ]
    batch = "abcdefgh"[: max(*ranks, 2) - 2]
    own = [batch[len(batch) - max(rank - 2, 0) :] for rank in ranks]
    row, column = "m" * (ranks[0] > 1), "n" * (ranks[1] > 1)
    return _einsum(writer, f"{own[0]}{row}k,{own[1]}k{column}->{batch}{row}{column}", [a, b])


@handles("addmm")
def _addmm(writer: Writer, bias: Operand, a: Operand, b: Operand, **options: Any) -> Field:
    if options:
        raise Refusal(f"has arguments {options}", "scale the weights instead")
    return writer.pairwise(Add, _matmul(writer, a, b), bias)


@handles("einsum")
def _einsum(writer: Writer, equation: str, operands: Sequence[Operand], *_: Any) -> Field:
    fields = [i for i, one in enumerate(operands) if isinstance(one, Field)]
    if len(fields) != 1:
        raise Refusal(
            "multiplies states with each other and sums up", "write it with * and convolutions"
        )
    at = fields[0]
    terms, arrow, out = equation.replace(" ", "").partition("->")
    labels = terms.split(",")
    if "." in equation or not arrow:
        raise Refusal(f"has the equation {equation}", "write out all letters, and ->")
    a = operands[at]
    assert isinstance(a, Field)
    mine = labels[at]
    others = [const(one, "a matrix") for i, one in enumerate(operands) if i != at]
    theirs = "".join(label for i, label in enumerate(labels) if i != at)
    summed = [i for i, letter in enumerate(mine) if letter not in out or letter in theirs]
    through = [i for i in range(len(mine)) if i not in summed]
    for dim in summed:
        a = a.merged(dim)
    new = [letter for letter in out if letter not in mine or mine.index(letter) in summed]
    counts = [size(a.dims[i]) for i in summed]
    total = prod(counts)

    def matrix(*tensors: Tensor) -> Tensor:
        basis = torch.eye(total).reshape(total, *counts)
        rows = iter(tensors)
        # The field is a basis of its channels; what passes through has one cell.
        inner = [
            "Z" + "".join(mine[k] for k in summed) if i == at else label
            for i, label in enumerate(labels)
        ]
        given = [basis if i == at else next(rows).float() for i in range(len(labels))]
        result = torch.einsum(f"{','.join(inner)}->Z{''.join(new)}", *given)
        return result.reshape(total, -1).T

    sizes = {
        letter: n
        for label, one in zip([*labels[:at], *labels[at + 1 :]], others, strict=True)
        for letter, n in zip(label, one.value.shape, strict=True)
    } | {mine[i]: n for i, n in zip(summed, counts, strict=True)}
    found = writer.sum_with(a, Const.of(matrix, *others), summed)
    kept = len(through)
    found = found.reshape([*found.shape[:kept], *(sizes[letter] for letter in new)])
    order = [mine[i] for i in through] + new
    return found.permute([order.index(letter) for letter in out])


def _dims(a: Field, dims: Any) -> list[int]:
    given = range(len(a.dims)) if dims is None or dims == [] else dims
    found = [a.dim(i) for i in ([given] if isinstance(given, int) else given)]
    for i in found:
        if any(atom.axis for atom in a.dims[i]):
            raise Refusal("takes the whole grid together", WHOLE_GRID)
    return found


def _kept(a: Field, found: Field, dims: list[int], keep: bool) -> Field:
    """Put the one channel that is left where its dimensions were, or nowhere."""
    last = len(found.dims) - 1
    found = found.squeeze([last])
    for dim in sorted(dims) if keep else ():
        found = found.unsqueeze(dim)
    return found


@handles("sum")
def _sum(writer: Writer, a: Field, dims: Any = None, keepdim: bool = False, **_: Any) -> Field:
    where = _dims(a, dims)
    count = prod(a.shape[i] for i in where)
    return _kept(a, writer.sum_with(a, Const(torch.ones(1, count)), where), where, keepdim)


@handles("mean")
def _mean(writer: Writer, a: Field, dims: Any = None, keepdim: bool = False, **_: Any) -> Field:
    where = _dims(a, dims)
    count = prod(a.shape[i] for i in where)
    mean = Const(torch.full((1, count), 1 / count))
    return _kept(a, writer.sum_with(a, mean, where), where, keepdim)


def _extreme(kind: type[Minimum] | type[Maximum]) -> Any:
    def handle(writer: Writer, a: Field, dims: Any = None, keepdim: bool = False) -> Field:
        where = _dims(a, dims)
        for dim in where:
            parts = [a.take(dim, slice(i, i + 1)) for i in range(a.shape[dim])]
            while len(parts) > 1:
                pairs = zip(parts[::2], parts[1::2], strict=False)
                odd = parts[-1:] if len(parts) % 2 else []
                parts = [writer.pairwise(kind, one, other) for one, other in pairs] + odd
            a = parts[0]
        return a if keepdim else a.squeeze(where)

    return handle


@handles("prod")
def _prod(writer: Writer, a: Field, dim: Any = None, keepdim: bool = False, **_: Any) -> Field:
    (where,) = _dims(a, dim)
    parts = [a.take(where, slice(i, i + 1)) for i in range(a.shape[where])]
    found = reduce(writer.product, parts)
    return found if keepdim else found.squeeze([where])


handles("amax")(_extreme(Maximum))
handles("amin")(_extreme(Minimum))


@handles("any")
def _any(writer: Writer, a: Field, dims: Any = None, keepdim: bool = False) -> Any:
    bits = field(writer.as_bit(a), "a bit")
    return replace(_extreme(Maximum)(writer, bits, dims, keepdim), dtype=torch.bool)


@handles("all")
def _all(writer: Writer, a: Field, dims: Any = None, keepdim: bool = False) -> Any:
    bits = field(writer.as_bit(a), "a bit")
    return replace(_extreme(Minimum)(writer, bits, dims, keepdim), dtype=torch.bool)


@handles("max")
def _max(writer: Writer, a: Operand, b: Any = None, keepdim: bool = False) -> Any:
    if isinstance(b, Field | Const):
        return writer.pairwise(Maximum, a, b)
    found = _extreme(Maximum)(writer, field(a, "an argument"), b, keepdim)
    return found if b is None else [found, None]


@handles("min")
def _min(writer: Writer, a: Operand, b: Any = None, keepdim: bool = False) -> Any:
    if isinstance(b, Field | Const):
        return writer.pairwise(Minimum, a, b)
    found = _extreme(Minimum)(writer, field(a, "an argument"), b, keepdim)
    return found if b is None else [found, None]
