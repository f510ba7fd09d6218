"""C of a step graph: a header that is to be read, and an engine that is to be fast."""
