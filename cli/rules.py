"""What users name: rules, by name or by path, and roundings."""

from importlib.resources import files
from pathlib import Path

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding
from scotopia.model.files import rule_kind
from scotopia.model.float_rule import KIND, FloatRule
from scotopia.quantize.integer_rule import IntegerRule

#: Rules that the package carries, by name: float rules, by their number of parameters but for the
#: first and for one for noisy sensors; `retina-int`, made from `retina`; and `retina-shift`, made
#: from `retina-2266`, whose weights are powers of two. `lizard` grows, as integers `lizard-int`.
SHIPPED = {
    **{
        name: files("scotopia.model") / "rules" / f"{name}.safetensors"
        for name in (
            *("retina", "retina-207", "retina-582", "retina-1248", "retina-2266"),
            *("retina-noise", "lizard"),
        )
    },
    **{
        name: files("scotopia.quantize") / "rules" / f"{name}.safetensors"
        for name in ("retina-int", "retina-shift", "lizard-int")
    },
}


def rule_path(text: str) -> Path:
    """Path of the rule that a user names: a shipped name, or a path."""
    return Path(str(SHIPPED.get(text, text)))


def load_float_rule(name: str) -> FloatRule:
    """Load a float rule, by name or by path, as its step graph.

    Raises
    ------
    InputError
        If there is none.
    """
    path = rule_path(name)
    if rule_kind(path) == KIND:
        return FloatRule.load(path)
    from scotopia.model.rule import Rule  # here: it needs torch
    from scotopia.model.scotopic.float_graph import as_float_rule

    return as_float_rule(Rule.load(path))


def check_alike(name: str, rule: FloatRule, integer: IntegerRule) -> None:
    """Raise InputError, which names it, unless a float rule has an integer rule's channels."""
    for what, found, expected in (
        ("channels", rule.channel_names, integer.channel_names),
        ("inputs", tuple(rule.graph.inputs), tuple(integer.graph.inputs)),
        ("steps a frame", (str(rule.steps_per_frame),), (str(integer.steps_per_frame),)),
    ):
        if found != expected:
            raise InputError(
                f"rule {name} has {what} {', '.join(found) or 'none'}, the integer rule has "
                f"{', '.join(expected) or 'none'}: give what was quantized"
            )


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
