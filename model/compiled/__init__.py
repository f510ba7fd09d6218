"""The step of a graph, unrolled over frames and differentiated, as C++ that is made for it."""

from .run import NotCompiled, unroll

__all__ = ["NotCompiled", "unroll"]
