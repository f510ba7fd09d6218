"""A training that was stopped: all that is needed to go on as if it had not been."""

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from scotopia.graph.errors import InputError

from .files import MAX_BYTES, VERSION, file_mode, parse_description, write_rule_file
from .video import Clip
from .videos import Slot

_KIND = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A training between two iterations.

    Attributes
    ----------
    iteration
        Iterations done.
    slots
        Where the videos are.
    config, options
        Of the rule and of the training, as JSON holds them.
    clips
        Digest of each clip's frames, by its name.
    notes
        What the caller wants to find again, as JSON.
    tensors
        Weights, their running averages and what the optimizer keeps, by parameter; the state of
        the cells.
    """

    iteration: int
    slots: list[Slot]
    config: dict[str, Any]
    options: dict[str, Any]
    clips: dict[str, str]
    notes: dict[str, Any]
    tensors: Mapping[str, NDArray[np.float32]]

    @property
    def finished(self) -> bool:
        """Whether all iterations are done that were asked for."""
        return self.iteration == self.options.get("iterations")

    def write(self, path: Path) -> None:
        """Write it to one file, whole or not at all; nothing in it is executed or unpickled."""
        description = {name: value for name, value in vars(self).items() if name != "tensors"}
        description["slots"] = [[slot.generation, slot.age, slot.shot] for slot in self.slots]
        write_rule_file(path, _KIND, description, dict(self.tensors))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it.

        Raises
        ------
        InputError
            If the file is missing, damaged, no checkpoint, or of another version.
        """
        if not stat.S_ISREG(file_mode(path)):
            raise InputError(
                f"checkpoint {path} does not exist, the training has not lasted a minute: "
                "start it without --resume"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("scotopia") != _KIND or metadata.get("version") != str(VERSION):
                    raise InputError(
                        f"{path} is no checkpoint of this version of Scotopia: remove it"
                    )
                text = metadata["description"]
                if len(text) > MAX_BYTES:
                    raise ValueError(f"its description has {len(text)} characters")
                fields = parse_description(text)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                slots = _unpack_slots(fields.pop("slots"), fields["iteration"])
                checkpoint = cls(slots=slots, tensors=tensors, **fields)
                checkpoint._check()
                return checkpoint
        except InputError:
            raise
        except (
            *(SafetensorError, OSError, KeyError, TypeError, ValueError),
            AttributeError,  # a type that NumPy has not
        ) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"checkpoint {path} cannot be read ({reason}): remove it to start anew"
            ) from error

    def _check(self) -> None:
        """Raise ValueError unless the fields are what they have to be."""
        for name in ("config", "options", "clips", "notes"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is a {type(getattr(self, name)).__name__}")
        if self.iteration > self.options["iterations"]:
            raise ValueError(
                f"{self.iteration} iterations are done of {self.options['iterations']}"
            )
        for name, tensor in self.tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise ValueError(f"{name} holds something else than finite float32")

    def check_same(self, path: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
        """Raise InputError, naming what differs, unless it was made so; `path` is for the text.

        But more iterations may be asked for than were.
        """
        for old, new in ((self.config, config), (self.options, options)):
            before = json.loads(json.dumps(old))  # tuples become lists, as in a file
            for name, now in json.loads(json.dumps(new)).items():
                if name not in before:
                    raise InputError(
                        f"checkpoint {path} is from before there was {name}: remove it to start "
                        "anew"
                    )
                if name == "iterations":
                    if now <= self.iteration:
                        raise InputError(
                            f"checkpoint {path} has done {self.iteration} iterations, and {now} "
                            "are asked for: ask for more, or remove it to start anew"
                        )
                elif before[name] != now:
                    expected = _text(before[name])
                    raise InputError(
                        f"checkpoint {path} was made with {name} {expected}, not {_text(now)}: "
                        f"ask for {expected}, or remove it to start anew"
                    )

    def check_same_clips(self, path: Path, clips: dict[str, str]) -> None:
        """Raise InputError, naming one that differs, unless it was made on these clips."""
        for name in sorted({*self.clips, *clips}, key=str):
            if self.clips.get(name) != clips.get(name):
                what = "with" if name not in clips else "without"
                if name in clips and name in self.clips:
                    what = "with other frames of"
                raise InputError(
                    f"checkpoint {path} was made {what} clip {name}: "
                    "give the same clips, or remove it to start anew"
                )


def digest(clip: Clip) -> str:
    """Digest of a clip's frames: 16 hexadecimal digits of SHA-256."""
    frames = np.ascontiguousarray(clip.frames, np.float32)
    return sha256(str(frames.shape).encode() + frames.tobytes()).hexdigest()[:16]


def digests(clips: list[Clip]) -> dict[str, str]:
    """Digests by name.

    Raises
    ------
    InputError
        If two clips have one name.
    """
    found: dict[str, str] = {}
    for clip in clips:
        if clip.name in found:
            raise InputError(f"two clips are called {clip.name}: rename one, or name it once")
        found[clip.name] = digest(clip)
    return found


def _unpack_slots(packed: Any, iteration: Any) -> list[Slot]:
    """Slots from JSON; ValueError, unless they can be those of so many iterations."""
    numbers = [iteration, *(number for slot in packed for number in slot)]
    if any(type(number) is not int for number in numbers) or iteration < 0:
        raise ValueError("iteration and slots are not counts")
    slots = [Slot(*slot) for slot in packed]
    for slot in slots:
        if slot.generation < 0 or not 0 <= slot.shot <= slot.age <= iteration - slot.generation:
            raise ValueError(f"{slot} cannot be after {iteration} iterations")
    return slots


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    return str(value)
