"""Make the packaged clip model/clips/davis_road.npz from the recording's frames.

    python scripts/embedded_clip.py davis_road.npz

The argument holds the recording's 59 frames, key `frames`, uint8 (59, 260, 346). Written are their
central squares, box-averaged to 128 x 128 and rounded to uint8.
"""

import sys
from pathlib import Path

import numpy as np

from scotopia.model.video import load_clip

TARGET = Path(__file__).parents[1] / "model" / "clips" / "davis_road.npz"


def main() -> None:
    """Write the packaged clip from the recording that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    frames = np.rint(load_clip(sys.argv[1]).frames * 255).astype(np.uint8)
    np.savez_compressed(TARGET, frames=frames)
    print(f"{TARGET}: frames {frames.shape}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
