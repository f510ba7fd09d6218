"""Command line: one sub-command a stage."""
