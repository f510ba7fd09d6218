"""Verification: golden model, Amaranth simulation and emitted Verilog, compared bit for bit."""
