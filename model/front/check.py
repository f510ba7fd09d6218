"""Runs a traced graph beside the module that it was made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Random
from scotopia.graph.step import StepGraph

from ..interpret import Interpreter
from .calls import GRID, LAYOUTS, Call
from .fields import BATCH, COLUMNS, ROWS, Field
from .lines import SMOOTH
from .pointwise import SMOOTH_ARGUMENTS, lines_for
from .refusal import place_of_error

#: Grids on which both are compared: the one that was traced, and two others.
GRIDS = ((GRID[ROWS], GRID[COLUMNS]), (6, 9), (11, 8))

#: Largest difference that the order of sums may make, of what the largest number is.
TOLERANCE = 2e-4

BATCHES = 2


@dataclass(frozen=True)
class Draws:
    """How a module draws random numbers.

    Attributes
    ----------
    fields
        Where the random words stand in what it draws, in order.
    compared
        Which words, counted from the first, are only compared with numbers.
    """

    fields: Sequence[Field]
    compared: set[int]

    def centred(self, graph: StepGraph, noise: Tensor) -> Tensor:
        """Return random words as numbers that lie between those of so few bits.

        So it does not matter whether a module says < or <=.
        """
        bits = [b for _, one in graph.of_kind(Random) if isinstance(one, Random) for b in one.bits]
        halves = [2.0 ** -(b + 1) if i in self.compared else 0.0 for i, b in enumerate(bits)]
        return noise + noise.new_tensor(halves)[:, None, None]


class _AsInGraph(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets a module draw given numbers, and compute smooth functions as its graph does."""

    def __init__(self, draws: Sequence[Field], noise: Sequence[Tensor], lines: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws, self.noise, self.lines = draws, noise, lines
        self.drawn = 0

    def next(self, grid: Mapping[str, int]) -> Tensor:
        """Return the next random tensor, in the layout in which it is drawn."""
        place, planes = self.draws[self.drawn], self.noise[self.drawn]
        self.drawn += 1
        atoms = [atom for dim in place.dims for atom in dim]
        channels = [atom.size for atom in atoms if not atom.axis]
        whole = planes.reshape(planes.shape[0], *channels, *planes.shape[2:])
        axes = {BATCH: 0, ROWS: whole.ndim - 2, COLUMNS: whole.ndim - 1}
        if BATCH not in place.axes:
            whole = whole[0:1]
        own = iter(range(1, 1 + len(channels)))
        order = [axes[atom.axis] if atom.axis else next(own) for atom in atoms]
        missing = [i for i in range(whole.ndim) if i not in order]
        sizes = [
            int(torch.tensor([grid[a.axis] if a.axis else a.size for a in dim]).prod())
            for dim in place.dims
        ]
        return whole.permute(*missing, *order).reshape(sizes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in ("rand", "rand_like", "randint", "randint_like", "bernoulli", "bernoulli_"):
            drawn = self.next(self.grid).to(torch.float32)
            if name.startswith("bernoulli"):
                share = args[1] if len(args) > 1 else args[0]
                return (drawn < share).to(args[0].dtype)
            if name.startswith("randint"):
                high = [a for a in args if isinstance(a, int)][-1]
                return (drawn * high).to(options.get("dtype") or torch.int64)
            return drawn.to(options.get("dtype") or torch.float32)
        plain = "log_sigmoid" if name == "log_sigmoid_forward" else name.removesuffix("_")
        if plain in SMOOTH and args[0].is_floating_point():
            given = dict(zip(SMOOTH_ARGUMENTS.get(plain, ()), args[1:], strict=False))
            result = lines_for(plain, self.lines, given | options)(args[0])
            if name.endswith("_"):
                return args[0].copy_(result)
            return (result, result) if name == "log_sigmoid_forward" else result
        return func(*args, **options)

    grid: Mapping[str, int] = {}


def check(
    graph: StepGraph,
    dtype: torch.dtype,
    step: nn.Module,
    call: Call,
    draws: Draws,
    lines: int,
    where: str,
) -> float:
    """Compare graph and module, and return the largest difference.

    Raises
    ------
    InputError
        If they differ, if the module returns NaN, or if it fails on another grid.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for rows, columns in GRIDS:
        for scale in (0.2, 1.0, 3.0):
            found, expected = _both(
                graph, dtype, step, call, draws, lines, where, (rows, columns), scale, generator
            )
            size = f"{rows}x{columns} cells"
            if found.shape != expected.shape:
                raise InputError(
                    f"{where} returns {'x'.join(map(str, expected.shape))} for {size}: its step "
                    "may not depend on the grid's size"
                )
            if not expected.isfinite().all():
                raise InputError(
                    f"{where} returns {expected[~expected.isfinite()][0]} for a state of random "
                    f"numbers up to {scale:g}: mend or train it"
                )
            difference = (found - expected).abs()
            limit = TOLERANCE * max(1.0, float(expected.abs().max()))
            largest = max(largest, float(difference.max()))
            if not difference.max() <= limit:
                channel = int(difference.amax((0, 2, 3)).argmax())
                reason = (
                    "it reads what is neither state, parameter nor argument"
                    if (rows, columns) == GRIDS[0]
                    else "its step may not depend on the grid's size"
                )
                raise InputError(
                    f"{where} differs from its graph by {float(difference.max()):.2g} in channel "
                    f"{call.channels[channel]}, for {size}: {reason}"
                )
    return largest


def _both(
    graph: StepGraph,
    dtype: torch.dtype,
    step: nn.Module,
    call: Call,
    draws: Draws,
    lines: int,
    where: str,
    size: tuple[int, int],
    scale: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Run graph and module on the same random state."""
    count = len(call.channels)

    def numbers(planes: int, reach: float) -> Tensor:
        drawn = torch.rand(BATCHES, planes, *size, generator=generator)
        return ((2 * drawn - 1) * reach).to(dtype)

    state = numbers(count, scale)
    # Half of it is empty, as most of a grid is that something grows on.
    state[:, :, : size[0] // 2] *= torch.rand(size[1], generator=generator) < 0.2
    inputs = {name: numbers(planes, scale) for name, planes in call.inputs.items()}
    run = Interpreter(graph)
    noise = run.draw(state, generator)
    counts = [one.count for _, one in graph.of_kind(Random)]
    parts = [*torch.split(noise, counts, 1)]
    for i, place in enumerate(draws.fields):
        if BATCH not in place.axes:
            parts[i] = parts[i][:1].expand_as(parts[i])
    noise = torch.cat(parts, 1) if parts else noise
    centred = draws.centred(graph, noise)
    parts = [*torch.split(centred, counts, 1)] if parts else []
    words = {
        word: inputs[name][:, i]
        for name in call.inputs
        for i, word in enumerate(call.input_words(name))
    }
    found = run(state, words, noise if run.random else None)

    order = [(BATCH, None, ROWS, COLUMNS).index(axis) for axis in LAYOUTS[call.layout]]
    mode = _AsInGraph(draws.fields, parts, lines)
    mode.grid = {BATCH: BATCHES, ROWS: size[0], COLUMNS: size[1]}
    arguments = [state, *inputs.values()]
    for chance in call.random.values():
        drawn = parts[mode.drawn]
        mode.drawn += 1
        arguments.append(drawn if chance is None else (drawn < chance).to(dtype))
    try:
        with mode:
            expected = step(*(one.permute(order).clone() for one in arguments))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{place_of_error(error)}{where} fails on {size[0]}x{size[1]} cells ({first}): its "
            "step may not depend on the grid's size"
        ) from error
    if not isinstance(expected, Tensor) or expected.ndim != 4:
        raise InputError(f"{where} returns no state: return a tensor like its first argument")
    back = [LAYOUTS[call.layout].index(axis) for axis in (BATCH, None, ROWS, COLUMNS)]
    return found, expected.permute(back).to(dtype)
