"""Growing: a picture that comes of one cell, stays, and heals."""
