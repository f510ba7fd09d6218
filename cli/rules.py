"""What users name: rules, by name or by path, and roundings."""

from importlib.resources import files
from pathlib import Path

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding

#: Rules that the package carries, by name: float rules, by their number of parameters but for the
#: first and for one for noisy sensors; `retina-int`, made from `retina`; and `retina-shift`, made
#: from `retina-2266`, whose weights are powers of two.
SHIPPED = {
    **{
        name: files("scotopia.model") / "rules" / f"{name}.safetensors"
        for name in (
            *("retina", "retina-207", "retina-582", "retina-1248", "retina-2266"),
            "retina-noise",
        )
    },
    **{
        name: files("scotopia.quantize") / "rules" / f"{name}.safetensors"
        for name in ("retina-int", "retina-shift")
    },
}


def rule_path(text: str) -> Path:
    """Path of the rule that a user names: a shipped name, or a path."""
    return Path(str(SHIPPED.get(text, text)))


def parse_rounding(name: str) -> Rounding:
    """Return a rounding by its name.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in Rounding.__members__:
        known = ", ".join(Rounding.__members__)
        raise InputError(f"rounding {name!r} is unknown: choose one of {known}")
    return Rounding[name]
