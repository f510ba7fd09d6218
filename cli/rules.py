"""Rules by name or by path."""

from importlib.resources import files
from pathlib import Path

#: Rules that the package carries, by name: float rules, by their number of parameters but for the
#: first, and the integer rule made from `retina`.
SHIPPED = {
    **{
        name: files("scotopia.model") / "rules" / f"{name}.safetensors"
        for name in ("retina", "retina-207", "retina-582", "retina-1248")
    },
    "retina-int": files("scotopia.quantize") / "rules" / "retina-int.safetensors",
}


def rule_path(text: str) -> Path:
    """Path of the rule that a user names: a shipped name, or a path."""
    return Path(str(SHIPPED.get(text, text)))
