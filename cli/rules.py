"""Rules by name or by path."""

from importlib.resources import files
from pathlib import Path

#: Rules that the package carries, by name: the float rule and the integer rule made from it.
SHIPPED = {
    "retina": files("scotopia.model") / "rules" / "retina.safetensors",
    "retina-int8": files("scotopia.quantize") / "rules" / "retina-int8.safetensors",
}


def rule_path(text: str) -> Path:
    """Path of the rule that a user names: a shipped name, or a path."""
    return Path(str(SHIPPED.get(text, text)))
