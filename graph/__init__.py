"""Step graphs: what one step of a cell computes, as a list of operations on fixed-point words."""
