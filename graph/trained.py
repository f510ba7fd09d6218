"""Which numbers of a graph training may change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .operations import Constant, Linear, Operation
from .step import StepGraph

#: By index of the operation: of a `Linear` masks of its weights (O, I, K) and biases (O,), of a
#: `Constant` one of its values (L,).
Masks = Mapping[int, tuple[NDArray[np.bool_], ...]]


def numbers_of(operation: Operation) -> tuple[NDArray[np.float64], ...]:
    """Return the numbers of an operation that could be trained, in the order of its masks."""
    if isinstance(operation, Linear):
        return operation.weight, operation.bias
    return (np.array(operation.values),) if isinstance(operation, Constant) else ()


def with_numbers(
    graph: StepGraph, numbers: Mapping[int, Sequence[NDArray[np.float64]]]
) -> StepGraph:
    """Return a graph with other numbers of some operations, by their index."""
    operations: dict[int, Operation] = {}
    for index, parts in numbers.items():
        operation = graph.operations[index]
        if isinstance(operation, Linear):
            operations[index] = replace(operation, weight=parts[0], bias=parts[1])
        else:
            assert isinstance(operation, Constant)
            operations[index] = replace(operation, values=tuple(parts[0].tolist()))
    return graph.changed(operations)


def check_trained(graph: StepGraph, trained: Masks) -> None:
    """Raise InputError unless masks have the shapes of a graph's numbers."""
    for index, masks in trained.items():
        inside = 0 <= index < len(graph.operations)
        numbers = numbers_of(graph.operations[index]) if inside else ()
        if not numbers or [one.shape for one in masks] != [one.shape for one in numbers]:
            raise InputError(
                f"operation {index} has not the numbers that are trained of it: write it again"
            )


def pack_trained(trained: Masks) -> tuple[dict[str, int], dict[str, NDArray[np.uint8]]]:
    """Return masks as a description for JSON, and tensors."""
    description = {str(index): len(masks) for index, masks in trained.items()}
    tensors = {
        f"trained.{index}.{place}": mask.astype(np.uint8)
        for index, masks in trained.items()
        for place, mask in enumerate(masks)
    }
    return description, tensors


def unpack_trained(
    packed: Mapping[str, int], tensors: Mapping[str, NDArray[Any]]
) -> dict[int, tuple[NDArray[np.bool_], ...]]:
    """Undo `pack_trained`."""

    def masks(index: str, places: Iterable[int]) -> tuple[NDArray[np.bool_], ...]:
        return tuple(tensors[f"trained.{index}.{place}"].astype(bool) for place in places)

    return {int(index): masks(index, range(count)) for index, count in dict(packed).items()}
