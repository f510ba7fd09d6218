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
GRIDS = ((GRID[ROWS], GRID[COLUMNS]), (7, 11), (13, 11))

#: Largest difference that the order of sums may make, of what the largest number is.
TOLERANCE = 2e-4

BATCHES = 2

_DRAWN = (
    *("rand", "rand_like", "randint", "randint_like"),
    *("bernoulli", "bernoulli_", "uniform", "uniform_"),
)


@dataclass(frozen=True)
class Draws:
    """How a module draws random numbers.

    Attributes
    ----------
    fields
        Where the random words stand in what it draws, in order.
    kept
        Which words, counted from the first, the graph draws, too.
    compared
        Which words it only compares with numbers.
    """

    fields: Sequence[Field]
    kept: Sequence[int]
    compared: set[int]

    def of_module(
        self, graph: StepGraph, noise: Tensor, generator: torch.Generator
    ) -> list[Tensor]:
        """Return what the module draws, each (B, L, H, W), for the random words of a graph.

        Numbers that are only compared lie between those of so few bits: so it does not matter
        whether a module says < or <=.
        """
        counts = [field.words.size for field in self.fields]
        drawn = torch.rand(len(noise), sum(counts), *noise.shape[2:], generator=generator)
        bits = [b for _, one in graph.of_kind(Random) if isinstance(one, Random) for b in one.bits]
        for lane, (word, count) in enumerate(zip(self.kept, bits, strict=True)):
            centre = 2.0 ** -(count + 1) if word in self.compared else 0.0
            drawn[:, word] = noise[:, lane] + centre
        return [*torch.split(drawn.to(noise), counts, 1)] if counts else []


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

    def is_of_cells(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the grid, rather than of parameters, whose sizes differ."""
        cells = self.grid[ROWS] * self.grid[COLUMNS]
        return tensor.is_floating_point() and tensor.numel() > 0 and tensor.numel() % cells == 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _DRAWN:
            drawn = self.next(self.grid).to(torch.float32)
            if name.startswith(("bernoulli", "uniform")):
                ends = [*args[1:], *(options[key] for key in ("from", "to") if key in options)]
                if name.startswith("uniform"):
                    low = ends[0] if ends else 0.0
                    high = ends[1] if len(ends) > 1 else 1.0
                    result = drawn * (high - low) + low
                else:
                    usual = 0.5 if name.endswith("_") else args[0]
                    result = (drawn < (ends[0] if ends else usual)).to(args[0].dtype)
                return args[0].copy_(result) if name.endswith("_") else result
            if name.startswith("randint"):
                high = [a for a in args if isinstance(a, int)][-1]
                return (drawn * high).to(options.get("dtype") or torch.int64)
            return drawn.to(options.get("dtype") or torch.float32)
        plain = "log_sigmoid" if name == "log_sigmoid_forward" else name.removesuffix("_")
        if plain in SMOOTH and self.is_of_cells(args[0]):
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
    word = 0
    for field in draws.fields:  # what is drawn once for a batch
        for _ in range(field.words.size):
            if BATCH not in field.axes and word in draws.kept:
                lane = draws.kept.index(word)
                noise[:, lane] = noise[:1, lane]
            word += 1
    parts = draws.of_module(graph, noise, generator)
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
