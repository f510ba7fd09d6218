"""What regroups channels: no operation of the step graph, but another order of words."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .fields import Atom, Field, common_margins, refined, size
from .handlers import REFUSED, field, handles, number
from .refusal import Refusal
from .writer import Const, Operand, Writer


@handles("view", "reshape", "_unsafe_view", "view_as")
def _reshape(writer: Writer, a: Field, shape: Sequence[int]) -> Field:
    return a.reshape(shape)


@handles("flatten")
def _flatten(writer: Writer, a: Field, start: int = 0, end: int = -1) -> Field:
    shape, start, end = a.shape, a.dim(start), a.dim(end)
    joined = int(np.prod(shape[start : end + 1]))
    return a.reshape([*shape[:start], joined, *shape[end + 1 :]])


@handles("unflatten")
def _unflatten(writer: Writer, a: Field, dim: int, sizes: Sequence[int]) -> Field:
    shape, dim = a.shape, a.dim(dim)
    return a.reshape([*shape[:dim], *sizes, *shape[dim + 1 :]])


@handles("permute")
def _permute(writer: Writer, a: Field, order: Sequence[int]) -> Field:
    return a.permute(order)


@handles("transpose", "swapaxes", "t")
def _transpose(writer: Writer, a: Field, one: int = 0, other: int = 1) -> Field:
    order = list(range(len(a.dims)))
    one, other = a.dim(one), a.dim(other)
    order[one], order[other] = order[other], order[one]
    return a.permute(order)


@handles("movedim")
def _movedim(writer: Writer, a: Field, source: Any, target: Any) -> Field:
    sources = [a.dim(i) for i in ([source] if isinstance(source, int) else source)]
    targets = [a.dim(i) for i in ([target] if isinstance(target, int) else target)]
    rest = iter(i for i in range(len(a.dims)) if i not in sources)
    places = dict(zip(targets, sources, strict=True))
    return a.permute([places[i] if i in places else next(rest) for i in range(len(a.dims))])


@handles("unsqueeze")
def _unsqueeze(writer: Writer, a: Field, dim: int) -> Field:
    return a.unsqueeze(dim)


@handles("squeeze")
def _squeeze(writer: Writer, a: Field, dims: Any = None) -> Field:
    if dims is None:
        dims = range(len(a.dims))
    return a.squeeze([dims] if isinstance(dims, int) else dims)


@handles("expand", "broadcast_to", "expand_as")
def _expand(writer: Writer, a: Field, shape: Sequence[int], **_: Any) -> Field:
    return a.expand(shape)


@handles("repeat", "tile")
def _repeat(writer: Writer, a: Field, times: Sequence[int]) -> Field:
    while len(a.dims) < len(times):
        a = a.unsqueeze(0)
    for dim, count in enumerate(times):
        if count != 1:
            a = a.take(dim, np.tile(np.arange(a.shape[dim]), count))
    return a


@handles("repeat_interleave")
def _repeat_interleave(writer: Writer, a: Field, times: int, dim: int, **_: Any) -> Field:
    return a.take(dim, np.repeat(np.arange(a.shape[a.dim(dim)]), times))


@handles("flip")
def _flip(writer: Writer, a: Field, dims: Sequence[int]) -> Field:
    for dim in dims:
        a = a.take(dim, slice(None, None, -1))
    return a


@handles("select")
def _select(writer: Writer, a: Field, dim: int, index: int) -> Field:
    dim = a.dim(dim)
    return a.take(dim, slice(index, index + 1 or None)).squeeze([dim])


@handles("split", "split_with_sizes")
def _split(writer: Writer, a: Field, sizes: Any, dim: int = 0) -> list[Field]:
    length = a.shape[a.dim(dim)]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - at) for at in range(0, length, sizes)]
    ends = np.cumsum([0, *sizes])
    return [a.take(dim, slice(i, j)) for i, j in pairwise(ends)]


@handles("chunk", "tensor_split")
def _chunk(writer: Writer, a: Field, count: int, dim: int = 0) -> list[Field]:
    length = a.shape[a.dim(dim)]
    return _split(writer, a, -(-length // count), dim)


@handles("unbind")
def _unbind(writer: Writer, a: Field, dim: int = 0) -> list[Field]:
    return [_select(writer, a, dim, i) for i in range(a.shape[a.dim(dim)])]


@handles("cat", "concat", "concatenate")
def joined(writer: Writer, parts: Sequence[Operand], dim: int = 0) -> Field:
    """Put channels one behind the other."""
    like = next(part for part in parts if isinstance(part, Field))
    dim = like.dim(dim)
    made = []
    for part in parts:
        if isinstance(part, Const):
            shape = part.value.shape
            own = [d if size(d) == n else (Atom(n),) for d, n in zip(like.dims, shape, strict=True)]
            own[dim] = (Atom(shape[dim]),)
            words = np.zeros([1 if x.axis else x.size for d in own for x in d], int)
            template = Field(words, tuple(own))
            made.append(writer.as_field(part, template).expand(shape))
        else:
            made.append(field(part, "a part"))
    made = [part.merged(dim) for part in made]
    dims = list(made[0].dims)
    for part in made[1:]:
        dims = [
            refined(a, b) if i != dim else a
            for i, (a, b) in enumerate(zip(dims, part.dims, strict=True))
        ]
    arrays = []
    for part in made:
        own = [*dims[:dim], part.dims[dim], *dims[dim + 1 :]]
        sizes = [1 if x.axis else x.size for d in own for x in d]
        arrays.append(part.words.reshape(sizes))
    at = sum(len(d) for d in dims[:dim])
    words = np.concatenate(arrays, at)
    dims[dim] = (Atom(words.shape[at]),)
    dtype = torch.bool if all(p.dtype == torch.bool for p in made) else torch.float32
    return Field(words, tuple(dims), dtype, common_margins(made))


@handles("stack")
def _stack(writer: Writer, parts: Sequence[Operand], dim: int = 0) -> Field:
    rank = next(len(part.dims) for part in parts if isinstance(part, Field)) + 1
    dim %= rank
    return joined(
        writer,
        [
            part.unsqueeze(dim)
            if isinstance(part, Field)
            else part.map(lambda t: t.unsqueeze(dim))
            if isinstance(part, Const)
            else part
            for part in parts
        ],
        dim,
    )


@handles("index_select")
def _index_select(writer: Writer, a: Field, dim: int, index: Const) -> Field:
    return a.take(dim, index.value.numpy())


@handles("index")
def _index(writer: Writer, a: Field, indices: Sequence[Any]) -> Field:
    chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(chosen) != 1 or not isinstance(chosen[0][1], Const):
        raise Refusal(
            "indexes with what depends on the state, or in several dimensions",
            "index channels with a list of numbers, or use torch.where",
        )
    dim, index = chosen[0]
    which = index.value.numpy()
    if which.ndim != 1:
        raise Refusal("indexes with a table", "index channels with a list of numbers")
    return a.take(dim, np.flatnonzero(which) if which.dtype == bool else which)


@handles("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh",
         "detach_copy", "view_copy", "positive")  # fmt: skip
def _same(writer: Writer, a: Field, *_: Any, **__: Any) -> Field:
    return a


@handles("dropout")
def _dropout(writer: Writer, a: Field, share: float, train: bool) -> Field:
    if train and share:
        raise Refusal(*REFUSED["native_dropout"])
    return a


@handles("_to_copy", "to", "type_as", "float", "bool")
def _to(writer: Writer, a: Field, *_: Any, **options: Any) -> Field:
    dtype = options.get("dtype")
    for given in _:
        if isinstance(given, torch.dtype):
            dtype = given
    if dtype is None or dtype == a.dtype:
        return a
    if dtype == torch.bool:
        bit = writer.as_bit(a)
        assert isinstance(bit, Field)
        return replace(bit, dtype=torch.bool)
    if dtype.is_floating_point and dtype.itemsize < a.dtype.itemsize == 4:
        raise Refusal(f"rounds to {dtype}", "leave rounding to the quantizer")
    if not dtype.is_floating_point and not writer.is_bit(a):
        raise Refusal("cuts numbers to integers", "compare them, or let the quantizer round")
    return replace(a, dtype=dtype)


@handles("copy")
def _copy(writer: Writer, a: Operand, b: Operand, *_: Any) -> Any:
    if isinstance(a, Field):
        source = b if isinstance(b, Field) else writer.as_field(b, a)
        return _to(writer, source.expand(a.shape), dtype=a.dtype)
    return b


@handles("slice_scatter")
def _slice_scatter(
    writer: Writer,
    a: Operand,
    part: Operand,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Field:
    if not isinstance(a, Field):
        like = field(part, "a part")
        a = _whole(writer, a, like, dim)
    dim = a.dim(dim)
    which = range(a.shape[dim])[slice(start, end, step)]
    if len(which) == a.shape[dim] and any(atom.axis for atom in a.dims[dim]):
        return part if isinstance(part, Field) else writer.as_field(part, a).expand(a.shape)
    return _put(writer, a, part, dim, np.array(which))


@handles("select_scatter")
def _select_scatter(writer: Writer, a: Operand, part: Operand, dim: int, index: int) -> Field:
    if isinstance(part, Field):
        part = part.unsqueeze(dim)
    elif isinstance(part, Const):
        part = part.map(lambda t: t.unsqueeze(dim))
    if not isinstance(a, Field):
        a = _whole(writer, a, field(part, "a part"), dim)
    dim = a.dim(dim)
    return _put(writer, a, part, dim, np.array([index % a.shape[dim]]))


@handles("index_put")
def _index_put(writer: Writer, a: Field, indices: Sequence[Any], part: Operand, *_: Any) -> Field:
    chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(chosen) == 1 and isinstance(chosen[0][1], Const):
        dim, index = chosen[0]
        which = index.value.numpy()
        return _put(writer, a, part, dim, np.flatnonzero(which) if which.dtype == bool else which)
    if len(chosen) == 1 and isinstance(chosen[0][1], Field) and not isinstance(part, Field):
        return writer.select(chosen[0][1], number(part, "a value"), a)
    raise Refusal(
        "writes to places that depend on the state", "use torch.where, which all cells can do"
    )


def _whole(writer: Writer, a: Operand, like: Field, dim: int) -> Field:
    """Return a constant that is about to be written to, as a field like its part."""
    assert isinstance(a, Const)
    dim = like.dim(dim)
    dims = (*like.dims[:dim], (Atom(a.value.shape[dim]),), *like.dims[dim + 1 :])
    words = np.zeros([1 if x.axis else x.size for d in dims for x in d], int)
    return writer.as_field(a, Field(words, dims)).expand(a.value.shape)


def _put(writer: Writer, a: Field, part: Operand, dim: int, which: Any) -> Field:
    """Replace some channels of a field."""
    a = a.merged(dim)
    target = a.take(dim, which)
    if isinstance(part, Field):
        filled = part.expand(target.shape)
    else:
        filled = writer.as_field(part, target).expand(target.shape)
    filled = _to(writer, filled.merged(dim), dtype=a.dtype)
    own = [*(a.dims[:dim]), filled.dims[dim], *a.dims[dim + 1 :]]
    words = a.words.copy()
    at = (slice(None),) * a.axis_of(dim) + (which,)
    words[at] = filled.words.reshape([1 if x.axis else x.size for d in own for x in d])
    margins = common_margins([a, filled])
    return replace(a, words=words, margins=margins)


@handles("full_like")
def _full_like(writer: Writer, a: Field, value: float, **options: Any) -> Field:
    words = np.full(a.words.shape, writer.number(value))
    return replace(a, words=words, dtype=options.get("dtype") or a.dtype)


@handles("zeros_like", "empty_like")
def _zeros_like(writer: Writer, a: Field, **options: Any) -> Field:
    return _full_like(writer, a, 0.0, **options)


@handles("ones_like")
def _ones_like(writer: Writer, a: Field, **options: Any) -> Field:
    return _full_like(writer, a, 1.0, **options)


@handles("new_full")
def _new(writer: Writer, a: Field, shape: Sequence[int], value: float, **_: Any) -> Const:
    return Const(torch.full(tuple(shape), float(value)))


@handles("new_zeros", "new_empty")
def _new_zeros(writer: Writer, a: Field, shape: Sequence[int], **_: Any) -> Const:
    return Const(torch.zeros(tuple(shape)))


@handles("new_ones")
def _new_ones(writer: Writer, a: Field, shape: Sequence[int], **_: Any) -> Const:
    return Const(torch.ones(tuple(shape)))
