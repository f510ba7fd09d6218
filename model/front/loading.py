"""A user's module: a class in a Python file, with the weights of a checkpoint."""

import importlib.util
import inspect
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from scotopia.graph.errors import InputError

from .refusal import place_of_error

#: Keys under which checkpoints keep their weights, beside an optimizer's state and the like.
_NESTED = ("state_dict", "model_state_dict", "model", "weights")


def load_module(
    where: str, arguments: Mapping[str, Any] | None = None, weights: Path | None = None
) -> nn.Module:
    """Make a module of a class in a Python file, which is run.

    Parameters
    ----------
    where
        "file.py:Class".
    arguments
        Of its constructor, by name.
    weights
        A checkpoint: a state dict, or a dict that holds one. Nothing in it is executed.

    Raises
    ------
    InputError
        If there is no such file or class, if it cannot be run or constructed, if it is no
        `nn.Module`, or if the checkpoint is none, or has other keys or shapes.
    """
    file, _, name = where.rpartition(":")
    if not file or not name:
        raise InputError(f"module {where!r} names no class: write file.py:Class")
    kind = _class(Path(file), name)
    given = dict(arguments or {})
    try:
        inspect.signature(kind).bind(**given)
    except TypeError as error:
        parameters = ", ".join(map(str, inspect.signature(kind).parameters.values()))
        raise InputError(
            f"{name} cannot be made with arguments {given or 'of none'} ({error}): it takes "
            f"({parameters})"
        ) from error
    try:
        module = kind(**given)
    except Exception as error:
        raise InputError(
            f"{place_of_error(error)}{name} cannot be made ({_short(error)}): give other arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where} is a {type(module).__name__}, no nn.Module: name one")
    if weights is not None:
        _fill(module, name, weights)
    return module


def _class(file: Path, name: str) -> Any:
    """Run a file, and return what it calls so."""
    if not file.is_file():
        raise InputError(f"module {file} is no file: name a Python file")
    spec = importlib.util.spec_from_file_location(f"scotopia_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"module {file} is no Python file: its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # As `python file.py` does: its own folder is where it imports from.
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f"{error.filename or file}:{error.lineno or 1}: "
        raise InputError(f"{line}this is no Python ({error.msg}): mend it") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"module {file} is no Python ({_short(error)}): mend it") from error
    except ImportError as error:
        raise InputError(
            f"{place_of_error(error)}{file} cannot be imported ({_short(error)}): install what it "
            "needs"
        ) from error
    except Exception as error:
        raise InputError(
            f"{place_of_error(error)}{file} cannot be imported ({_short(error)}): mend it"
        ) from error
    finally:
        sys.path.remove(folder)
    if not inspect.isclass(getattr(module, name, None)):
        classes = [
            n
            for n, one in vars(module).items()
            if inspect.isclass(one) and issubclass(one, nn.Module) and one.__module__ == spec.name
        ]
        known = f"it has {', '.join(classes)}" if classes else "it has none that is an nn.Module"
        raise InputError(f"module {file} has no class {name}: {known}")
    return getattr(module, name)


def _fill(module: nn.Module, name: str, path: Path) -> None:
    """Load weights, all of them, and no others."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"weights {path} is no file: name a checkpoint") from error
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, zipfile.BadZipFile) as e:
        raise InputError(
            f"weights {path} cannot be read as tensors alone ({_short(e)}): save the state dict by "
            "torch.save(module.state_dict(), path)"
        ) from e
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise InputError(
            f"weights {path} holds no state dict: save it by torch.save(module.state_dict(), path)"
        )
    own = module.state_dict()
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or extra:
        raise InputError(
            f"weights {path} are not those of {name}: missing {_list(missing)}, extra "
            f"{_list(extra)}: give the arguments with which it was trained"
        )
    for key, tensor in own.items():
        if tensor.shape != found[key].shape:
            raise InputError(
                f"weights {path} have {key} of {_shape(found[key])}, {name} has {_shape(tensor)}: "
                "give the arguments with which it was trained"
            )
    module.load_state_dict(dict(found))


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
