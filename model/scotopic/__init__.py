"""The scotopic rule: what an automaton perceives of a video that arrives pixel by pixel."""
