"""Float world: the rule, the scotopic task, clips, baselines and training.

Importing this package imports nothing heavy; the modules that need torch import it themselves,
so that the hardware stages can share what is small (`errors`) without it.
"""
