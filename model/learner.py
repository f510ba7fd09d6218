"""What can be trained: a module that says how it was, and writes itself to a file."""

from pathlib import Path
from typing import Any

from torch import nn


class Learner(nn.Module):
    """A rule in training.

    Attributes
    ----------
    training_record
        How it was trained: clips, command, options. Empty for a new rule.
    """

    training_record: dict[str, Any]

    @property
    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: Path) -> None:
        """Write the rule and its training record to one file, whole or not at all."""
        raise NotImplementedError
