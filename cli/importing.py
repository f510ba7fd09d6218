"""`scotopia import`: a PyTorch module of the user's becomes a float rule."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    file = Path(job.module.rpartition(":")[0])
    if file.is_file() and out.exists() and out.samefile(file):
        raise InputError(f"--out {out} would replace {file}, which is read: choose another path")
    patch = patch_of(job.start)
    events = tuple(map(_event, job.events))
    random, constants = dict(map(_chance, job.random)), dict(map(_constant, job.constants))
    module = load_module(job.module, arguments_of(job.args), job.weights)
    channels = job.channels
    if channels is not None and channels < 1:
        raise InputError(f"channels {channels} is below 1: give as many as the state has")
    if channels is None and not hasattr(module, "channel_names"):
        channels = getattr(module, "channels", None)
        if type(channels) is not int:
            raise InputError(f"{job.module} does not say how many channels it has: give --channels")
    given = [name for event in events for name in (event.value, event.flag) if name]
    traced = trace(
        module,
        channels,
        inputs=dict.fromkeys(given, 1),
        random=random,
        constants=constants,
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
        _initial(job.start, patch, len(traced.graph.channels)),
        {"command": job.command, "source": Path(source).name if source else ""},
        trained=traced.trained(),
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
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(text)
        return {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"args {text!r} are not names and literals: write them as 'channels=16, size=64'"
        ) from error


def patch_of(start: str) -> NDArray[np.float64] | None:
    """Return the values that the file of `--start` holds; None for zeros and cell.

    Raises
    ------
    InputError
        If there is no such file, or it does not hold finite numbers of three dimensions.
    """
    if start in ("zeros", "cell"):
        return None
    path = Path(start)
    if path.suffix != ".npy" or not path.is_file():
        raise InputError(f"start {start!r} is unknown: choose zeros, cell or a .npy file")
    try:
        patch: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"start {path} cannot be read ({error}): write it by numpy.save"
        ) from error
    if patch.ndim != 3 or patch.dtype.kind not in "fiu" or not np.isfinite(patch).all():
        raise InputError(
            f"start {path} holds {patch.dtype} of shape {patch.shape}, or a number that is not "
            "finite: give numbers of shape (channels, h, w)"
        )
    return patch.astype(np.float64)


def _initial(start: str, patch: NDArray[np.float64] | None, channels: int) -> Initial:
    if patch is not None:
        if len(patch) != channels:
            raise InputError(
                f"start {start} holds {len(patch)} channels, the module has {channels}: "
                "give a value for each"
            )
        none = np.zeros(channels)
        return Initial(none, patch, none)
    if start == "zeros":
        return Initial.zeros(channels)
    values = np.ones(channels)
    values[:3] = 0
    return Initial.cell(values)


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
        raise InputError(
            f"random {name} has chance {chance!r}, not above 0 and up to 1: give {name}=0.5"
        )
    return name, share


def _constant(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"constant {text!r} has no literal value: write NAME=VALUE") from error
