"""What the channels of a scotopic rule mean, for reports."""

from ..rule import Rule
from ..start import has_verdict


def channel_titles(rule: Rule) -> list[str]:
    """Names of a rule's channels, with what they mean where that is known."""
    config = rule.config
    meanings = {0: "prediction"}
    if "trust" in config.inputs:
        meanings[config.doubt] = "doubt"
    if has_verdict(rule):
        meanings[config.doubt + 1] = "verdict"
    return [
        f"{name} ({meanings[number]})" if number in meanings else name
        for number, name in enumerate(config.channel_names)
    ]
