"""Step graphs as files hold them: a description for JSON, and tensors.

An operation is its kind and its fields; the weights of a `Linear` are the tensors `NUMBER.weight`
and `NUMBER.bias`, by its place in the graph. A format is [int_bits, frac_bits, signed].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .operations import OPERATIONS, Border, Operation
from .qformat import Overflow, QFormat, Rounding
from .step import StepGraph

_KINDS = {kind.__name__.lower(): kind for kind in OPERATIONS}

#: Most words of a graph that a file may hold: what is larger than any array's memory.
MOST_WORDS = 100_000

#: Most bits of a random number that a file may hold: what a 64-bit code and a double still do.
MOST_RANDOM_BITS = 48

Tensors = dict[str, NDArray[np.float64]]


def pack(graph: StepGraph) -> tuple[dict[str, Any], Tensors]:
    """Return a graph as a description and tensors."""
    tensors: Tensors = {}
    operations = []
    for index, operation in enumerate(graph.operations):
        packed: dict[str, Any] = {"kind": type(operation).__name__.lower()}
        for field in dataclasses.fields(operation):
            value = getattr(operation, field.name)
            if isinstance(value, np.ndarray):
                tensors[f"{index}.{field.name}"] = value
            elif field.name == "formats":
                packed["formats"] = [one and pack_format(one) for one in value]
            elif isinstance(value, tuple):
                packed[field.name] = list(value)
            else:
                packed[field.name] = value
        operations.append(packed)
    names = [[word, name] for word, name in sorted(graph.names.items())]
    return {"operations": operations, "outputs": list(graph.outputs), "names": names}, tensors


def unpack(packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> StepGraph:
    """Undo `pack`.

    Raises
    ------
    InputError, KeyError, TypeError, ValueError
        If it was something else.
    """
    operations = [_operation(index, one, tensors) for index, one in enumerate(packed["operations"])]
    if sum(operation.count for operation in operations) > MOST_WORDS:
        raise InputError(f"the graph has more than {MOST_WORDS} words: write it again")
    names = {word: str(name) for word, name in packed["names"]}
    if any(type(word) is not int for word in names):
        raise ValueError("a name is not of a word")
    return StepGraph(tuple(operations), _words(packed["outputs"]), names)


def _operation(
    index: int, packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> Operation:
    kind = _KINDS[packed["kind"]]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = field.name
        match name:
            case "weight" | "bias":
                tensor = tensors[f"{index}.{name}"]
                if not np.isfinite(tensor).all():
                    raise ValueError(f"{index}.{name} has a number that is not finite")
                fields[name] = tensor.astype(np.float64)
            case "formats":
                fields[name] = tuple(
                    None if one is None else unpack_format(one) for one in packed[name]
                )
            case "names":
                fields[name] = tuple(map(str, packed[name]))
            case "values":
                fields[name] = tuple(map(float, packed[name]))
                if not np.isfinite(fields[name]).all():
                    raise ValueError(f"{index}.{name} has a number that is not finite")
            case "bits":
                fields[name] = _words(packed[name])
                if any(not 1 <= bits <= MOST_RANDOM_BITS for bits in fields[name]):
                    raise ValueError(f"{packed[name]} are no numbers of random bits")
            case "border":
                if packed[name] not in get_args(Border):
                    raise ValueError(f"{packed[name]!r} is no border")
                fields[name] = packed[name]
            case "rounding":
                fields[name] = Rounding(packed[name])
            case "overflow":
                fields[name] = Overflow(packed[name])
            case "largest":
                fields[name] = bool(packed[name])
            case _:
                fields[name] = _words(packed[name])
    return kind(**fields)


def _words(packed: Any) -> tuple[int, ...]:
    if not isinstance(packed, list) or any(type(word) is not int for word in packed):
        raise ValueError(f"{packed!r} are no words")
    return tuple(packed)


def pack_format(format: QFormat) -> list[int | bool]:
    """Return a format as JSON holds it."""
    return [format.int_bits, format.frac_bits, format.signed]


def unpack_format(packed: Any) -> QFormat:
    """Undo `pack_format`; ValueError, if it was something else."""
    if not isinstance(packed, list) or [type(field) for field in packed] != [int, int, bool]:
        raise ValueError(f"{packed} is no format")
    return QFormat(*packed)
