"""Pictures of rules that grow, a row a rule: python scripts/growth_picture.py lizard lizard-int

From the seed on, then wounded, then healing; what is printed are the PSNRs against the target.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scotopia.cli.rules import rule_path
from scotopia.model.files import rule_kind
from scotopia.model.float_rule import FloatRule
from scotopia.model.growing.picture import on_white
from scotopia.model.growing.running import advance as advance_float
from scotopia.model.growing.task import HEALED, STAYED, GrowingTask, Growth
from scotopia.quantize.growing import advance as advance_integers
from scotopia.quantize.integer_rule import IntegerRule

#: Steps that are shown, and after the wound.
GROWING, HEALING = (0, 8, 16, 24, 32, 48, 96, STAYED), (4, 16, 2 * HEALED)

#: Pixels of a cell, and between two pictures, in units of that.
SCALE, GAP = 3, 2


def grow(name: str, target: str) -> Growth:
    """Let a rule grow."""
    path, task = rule_path(name), GrowingTask(target)
    sides = task.target.shape[1:]
    if rule_kind(path) == "integer rule":
        rule = IntegerRule.load(path)
        return task.grow(advance_integers(rule, *sides), rule.initial)
    floats = FloatRule.load(path)
    return task.grow(advance_float(floats, *sides), floats.initial)


def row(growth: Growth) -> NDArray[np.uint8]:
    """Return its pictures side by side."""
    shown = [growth.states[growth.steps.index(step)] for step in GROWING]
    shown.append(growth.wounded)
    shown += [growth.states[growth.steps.index(STAYED + steps)] for steps in HEALING]
    pictures = [on_white(state) for state in shown]
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for one in pictures for part in (one, gap)][:-1], 1)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rules", nargs="+", help="names or files")
    parser.add_argument("--target", default="lizard", help="picture that they grow")
    parser.add_argument("--out", type=Path, default=Path("docs/lizard.png"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.rules:
        growth = grow(name, arguments.target)
        figures = zip(growth.steps, growth.psnr, strict=True)
        print(f"{name}: PSNR in dB after", ", ".join(f"{s} steps {p:.1f}" for s, p in figures))
        pictures = row(growth)
        rows += [pictures, np.full((GAP, *pictures.shape[1:]), 255, np.uint8)]
    picture = np.concatenate(rows[:-1], 0).repeat(SCALE, 0).repeat(SCALE, 1)
    Image.fromarray(picture).quantize(64).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
