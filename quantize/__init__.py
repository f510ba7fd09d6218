"""Fixed point: formats, post-training quantization, and the integer rule (the golden model)."""
