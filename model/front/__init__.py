"""The front end: from a PyTorch module to a step graph."""

from .loading import load_module
from .trace import Traced, trace

__all__ = ["Traced", "load_module", "trace"]
