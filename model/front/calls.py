"""How a module's step is called: which arguments are the state, inputs, random or fixed."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from scotopia.graph.errors import InputError

from .fields import BATCH, COLUMNS, ROWS, Atom, Dim

#: Sizes of the example that is traced: odd ones, so that they tell axes from channels.
GRID = {BATCH: 7, ROWS: 31, COLUMNS: 37}

#: Axes of a state (B, C, H, W) and of one with its channels last.
LAYOUTS = {"BCHW": (BATCH, None, ROWS, COLUMNS), "BHWC": (BATCH, ROWS, COLUMNS, None)}


@dataclass(frozen=True, eq=False)
class Call:
    """How a module's step is called.

    Attributes
    ----------
    method
        Its name.
    channels
        Names of the state's channels.
    inputs
        Number of channels of each tensor that is given from outside, by argument.
    random
        Arguments that are drawn anew in each step: 0 or 1, with this chance of a 1; None for a
        number in [0, 1).
    constants
        Other arguments.
    layout, output
        See `trace`.
    """

    method: str
    channels: tuple[str, ...]
    inputs: Mapping[str, int]
    random: Mapping[str, float | None]
    constants: Mapping[str, Any]
    layout: str
    output: int | str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Arguments that are tensors, behind the state."""
        return (*self.inputs, *self.random)

    def dims(self, count: int) -> tuple[Dim, ...]:
        """Dimensions of a tensor of so many channels."""
        return tuple(
            (Atom(GRID[axis], axis),) if axis else (Atom(count),) for axis in LAYOUTS[self.layout]
        )

    def input_words(self, name: str) -> list[str]:
        """Names of an input's words."""
        count = self.inputs[name]
        return [name] if count == 1 else [f"{name}{i}" for i in range(count)]


def understood(
    module: nn.Module,
    channels: int | Sequence[str] | None,
    inputs: Mapping[str, int] | None,
    random: Mapping[str, float | None] | None,
    constants: Mapping[str, Any] | None,
    method: str,
    layout: str,
    output: int | str | None,
) -> Call:
    """Work out how the step is called.

    Raises
    ------
    InputError
        If it cannot be called so.
    """
    kind = type(module).__name__
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown: choose {' or '.join(LAYOUTS)}")
    if not callable(getattr(module, method, None)):
        raise InputError(f"{kind} has no method {method}: name the one that does a step")
    if channels is None:
        channels = getattr(module, "channel_names", None)
        if channels is None:
            raise InputError(f"{kind} has no channel_names: say how many channels its state has")
    names = [f"x{i}" for i in range(channels)] if isinstance(channels, int) else [*channels]
    if not names:
        raise InputError(f"{kind} has a state of no channels: give it one or more")
    parameters = list(inspect.signature(getattr(module, method)).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_state = parameters and parameters[0].kind is not parameters[0].KEYWORD_ONLY
    if not takes_state:
        raise InputError(f"{kind}.{method} takes no state: its first argument is the state")
    others = {p.name: p for p in named if p is not parameters[0]}
    given = {"inputs": inputs or {}, "random": random or {}, "constants": constants or {}}
    seen: set[str] = set()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for what, arguments in given.items():
        for name in arguments:
            if name in seen:
                raise InputError(f"argument {name} is named twice: say once what it is")
            if name not in others and not open_ended:
                known = ", ".join(others) or "none but the state"
                raise InputError(
                    f"{what} names {name}, which is no argument of {kind}.{method}: it has {known}"
                )
            seen.add(name)
    required = {n: 1 for n, p in others.items() if p.default is p.empty and n not in seen}
    return Call(
        method,
        tuple(names),
        {**required, **given["inputs"]},
        given["random"],
        given["constants"],
        layout,
        output,
    )
