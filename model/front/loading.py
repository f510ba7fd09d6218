"""What a user wrote: a class or a function in a Python file, the weights of a checkpoint."""

import importlib.util
import inspect
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scotopia.graph.errors import InputError

from .refusal import place_of_error

#: Keys under which checkpoints keep their weights, beside an optimizer's state and the like.
_NESTED = ("state_dict", "model_state_dict", "model", "weights")


T = TypeVar("T")


def load_module(
    where: str, arguments: Mapping[str, Any] | None = None, weights: Path | None = None
) -> nn.Module:
    """Make a module of a class in a Python file, which is run.

    Parameters
    ----------
    where, arguments
        See `load_instance`.
    weights
        A checkpoint: a state dict, or a dict that holds one. Nothing in it is executed.

    Raises
    ------
    InputError
        As `load_instance`, or if the checkpoint is none, or has other keys or shapes.
    """
    module = load_instance(where, nn.Module, arguments)
    if weights is not None:
        _fill(module, type(module).__name__, weights)
    return module


def load_instance(
    where: str,
    base: type[T],
    arguments: Mapping[str, Any] | None = None,
    what: str = "module",
) -> T:
    """Make an instance of a class in a Python file, which is run.

    Parameters
    ----------
    where
        "file.py:Class".
    base
        What it must be a subclass of.
    arguments
        Of its constructor, by name.
    what
        The file is called, if it is refused.

    Raises
    ------
    InputError
        If there is no such file or class, if it cannot be run or constructed, or is none of `base`.
    """
    file, name = _split(where, "Class", what)
    module = _run(file, what)
    kind = getattr(module, name, None)
    if not inspect.isclass(kind):
        classes = [
            n
            for n, one in vars(module).items()
            if inspect.isclass(one) and issubclass(one, base) and one.__module__ == module.__name__
        ]
        none = f"it has none that is {_a(base)}"
        known = f"it has {', '.join(classes)}" if classes else none
        raise InputError(f"{what} {file} has no class {name}: {known}")
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
        made = kind(**given)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{place_of_error(error)}{name} cannot be made ({short(error)}): give other arguments"
        ) from error
    if not isinstance(made, base):
        raise InputError(f"{where} is a {type(made).__name__}, no {_named(base)}: name one")
    return made


def load_function(where: str, what: str) -> Callable[..., Any]:
    """Return a function of a Python file, which is run.

    Parameters
    ----------
    where
        "file.py:function".
    what
        It is called, if it is refused.

    Raises
    ------
    InputError
        If there is no such file or function, or the file cannot be run.
    """
    file, name = _split(where, "function", what)
    found = getattr(_run(file, what), name, None)
    if not callable(found):
        raise InputError(f"{what} {file} has no function {name}: name one that it has")
    return found  # type: ignore[no-any-return]


def _split(where: str, kind: str, what: str) -> tuple[Path, str]:
    file, _, name = where.rpartition(":")
    if not file or not name:
        raise InputError(f"{what} {where!r} names no {kind.lower()}: write file.py:{kind}")
    return Path(file), name


def _named(base: type) -> str:
    return "nn.Module" if base is nn.Module else base.__name__


def _a(base: type) -> str:
    return f"{'an' if base is nn.Module else 'a'} {_named(base)}"


def _run(file: Path, what: str) -> ModuleType:
    """Run a file."""
    if not file.is_file():
        raise InputError(f"{what} {file} is no file: name a Python file")
    spec = importlib.util.spec_from_file_location(f"scotopia_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{what} {file} is no Python file: its name ends in .py")
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
        raise InputError(f"{what} {file} is no Python ({short(error)}): mend it") from error
    except ImportError as error:
        raise InputError(
            f"{place_of_error(error)}{file} cannot be imported ({short(error)}): install what it "
            "needs"
        ) from error
    except Exception as error:
        raise InputError(
            f"{place_of_error(error)}{file} cannot be imported ({short(error)}): mend it"
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _fill(module: nn.Module, name: str, path: Path) -> None:
    """Load weights, all of them, and no others."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"weights {path} is no file: name a checkpoint") from error
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, zipfile.BadZipFile) as e:
        raise InputError(
            f"weights {path} cannot be read as tensors alone ({short(e)}): save the state dict by "
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


def short(error: BaseException) -> str:
    """Return an error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
