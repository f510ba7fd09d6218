"""The step of a graph, unrolled over frames and differentiated, as C++ that is made for it."""

from .run import unroll as unroll
