"""`scotopia import`: a PyTorch module of the user's becomes a float rule."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.float_rule import FloatRule
from scotopia.model.front import load_module, trace


@dataclass(frozen=True)
class Job:
    """What is imported, as the options of `scotopia import` say."""

    module: str
    weights: Path | None
    args: str
    method: str
    channels: int | None
    layout: str
    events: tuple[str, ...]
    random: tuple[str, ...]
    constants: tuple[str, ...]
    start: str
    steps_per_frame: int
    lines: int
    command: str


def import_module(job: Job, out: Path) -> str:
    """Write a module's step as a float rule, and say what it is.

    Raises
    ------
    InputError
        If the module cannot be made, or does what no rule can; see `load_module` and `trace`.
    """
    module = load_module(job.module, arguments_of(job.args), job.weights)
    channels = job.channels
    if channels is None and not hasattr(module, "channel_names"):
        channels = getattr(module, "channels", None)
        if type(channels) is not int:
            raise InputError(f"{job.module} does not say how many channels it has: give --channels")
    events = tuple(map(_event, job.events))
    given = [name for event in events for name in (event.value, event.flag) if name]
    traced = trace(
        module,
        channels,
        inputs=dict.fromkeys(given, 1),
        random=dict(map(_chance, job.random)),
        constants=dict(map(_constant, job.constants)),
        method=job.method,
        layout=job.layout,
        lines=job.lines,
    )
    unnamed = [name for name in traced.graph.inputs if name not in given]
    if unnamed:
        raise InputError(
            f"argument {unnamed[0]} of {job.method} is given by nothing: name it by --event, "
            "--random or --constant"
        )
    source = inspect.getsourcefile(type(module))
    rule = FloatRule(
        traced.graph,
        job.steps_per_frame,
        events,
        initial_state(job.start, len(traced.graph.channels)),
        {"command": job.command, "source": Path(source).name if source else ""},
    )
    rule.save(out)
    kinds = len(traced.graph.operations)
    parts = [
        f"{out}: {len(traced.graph.channels)} channels, {kinds} operations on "
        f"{traced.graph.count} words; differs from the module by {traced.difference:.2g} at most"
    ]
    for place, error in traced.approximations.items():
        parts.append(f"{place}: {job.lines} lines, off by {error:.2g} at most")
    return "\n".join(parts)


def arguments_of(text: str) -> dict[str, Any]:
    """Return what `text`, such as "channels=16, mode='add'", gives by name.

    Raises
    ------
    InputError
        If it is anything but names and literals.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise InputError(
            f"arguments {text!r} are not names and literals: write them as 'channels=16, size=64'"
        ) from error


def initial_state(text: str, channels: int) -> Initial:
    """Return the initial state that `--start` names.

    Raises
    ------
    InputError
        If there is no such file, or it does not hold (channels, h, w) finite numbers.
    """
    if text == "zeros":
        return Initial.zeros(channels)
    if text == "cell":
        values = np.ones(channels)
        values[:3] = 0
        return Initial.cell(values)
    path = Path(text)
    if path.suffix != ".npy" or not path.is_file():
        raise InputError(f"start {text!r} is unknown: choose zeros, cell or a .npy file")
    try:
        patch = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"start {path} cannot be read ({error}): write it by numpy.save"
        ) from error
    fits = patch.ndim == 3 and len(patch) == channels and patch.dtype.kind in "fiu"
    if not fits or not np.isfinite(patch).all():
        raise InputError(
            f"start {path} holds {patch.dtype} of shape {patch.shape}, or a number that is not "
            f"finite: give numbers of shape ({channels}, h, w)"
        )
    none = np.zeros(channels)
    return Initial(none, patch.astype(np.float64), none)


def _event(text: str) -> Event:
    value, _, flag = text.partition(":")
    return Event(value, flag or None)


def _chance(text: str) -> tuple[str, float | None]:
    name, given, chance = text.partition("=")
    if not given:
        return name, None
    try:
        share = float(chance)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise InputError(f"chance {chance!r} of {name} is not above 0 and up to 1: give 0.5")
    return name, share


def _constant(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"constant {text!r} has no literal value: write NAME=VALUE") from error
