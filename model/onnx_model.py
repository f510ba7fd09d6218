"""What the ONNX models of float and of integer rules have in common. It needs no torch."""

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Event, Initial, pack_events

from .files import write_atomically

#: Version of both kinds of model.
VERSION = 2


def describe(
    channels: tuple[str, ...],
    steps_per_frame: int,
    events: tuple[Event, ...],
    initial: Initial,
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a model's metadata say beside its nodes: what it takes to run a step."""
    return {
        "channels": list(channels),
        "steps_per_frame": steps_per_frame,
        "events": pack_events(events),
        "initial": {
            "fill": initial.fill.tolist(),
            "patch": initial.patch.tolist(),
            "spread": initial.spread.tolist(),
            "seed": initial.seed,
        },
        "training": dict(training),
    }


def check_names(inputs: Iterable[str]) -> tuple[str, ...]:
    """Return inputs' names; InputError, if a model needs one of them for something else."""
    names = tuple(inputs)
    for name in names:
        if name in ("state", "noise", "next_state") or "." in name:
            raise InputError(
                f"input {name} has a name that the model uses itself: import the rule with "
                "another name for it"
            )
    return names


def import_onnx(*more: str) -> Any:
    """Import the package `onnx`, which is optional, and others that it takes to write a model.

    Raises
    ------
    InputError
        If one of them is not installed.
    """
    for name in ("onnx", *more):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"ONNX models need the package {name}, which is not installed: "
                "run `pip install 'scotopia[onnx]'`"
            ) from error
    return importlib.import_module("onnx")


def with_metadata(model: Any, kind: str, description: Mapping[str, Any], **more: str) -> Any:
    """Return a model of a "float rule" or an "integer rule" with what its nodes do not say."""
    metadata = {"scotopia": kind, "version": str(VERSION), "description": json.dumps(description)}
    import_onnx().helper.set_model_props(model, metadata | more)
    return model


def write_model(path: Path, model: Any) -> None:
    """Check a model and write it, whole or not at all."""
    import_onnx().checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString(deterministic=True))
