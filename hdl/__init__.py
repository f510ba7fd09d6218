"""Amaranth: the pixel array, its program, and Verilog out of both."""
