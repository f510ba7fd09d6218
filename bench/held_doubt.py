"""What a rule would gain by judging better how fast a clip changes: python bench/held_doubt.py

Scores a rule as it is, and with the doubt of all cells held at one value, clip by clip. Where a
value scores higher than the rule's own doubt, the rule misjudges there how long a sample counts: no
other weight is changed.
"""

import argparse

import torch
from training_gain import DENSITY, HELD_OUT, SEED, score_of_fixed

from scotopia.cli.clips import clip_names
from scotopia.cli.rules import rule_path
from scotopia.model.rule import Rule
from scotopia.model.scotopic.training import validate
from scotopia.model.video import Clip, resolve_clip

#: Frames of a clip that are shown: its first ones, since each value runs through all of them.
FRAMES = 120


@torch.no_grad()
def hold_doubt(rule: Rule, value: float) -> None:
    """Make a gated rule's doubt `value` after each step, in every cell; no other weight changes."""
    config = rule.config
    assert config.kind == "gated"
    bias = rule.update.bias
    assert bias is not None
    candidate, gate = config.doubt, config.channels + config.doubt
    rule.update.weight[[candidate, gate]] = 0
    bias[candidate], bias[gate] = value, 2  # the gate is open


def main() -> None:
    """Score and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="retina")
    parser.add_argument(
        "--clips",
        nargs="+",
        default=HELD_OUT,
    )
    parser.add_argument("--frames", type=int, default=FRAMES)
    values = [0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    parser.add_argument("--doubts", nargs="+", type=float, default=values)
    arguments = parser.parse_args()
    path = rule_path(arguments.rule)
    rule, held = Rule.load(path), Rule.load(path)
    print(f"PSNR in dB, first {arguments.frames} frames, density {DENSITY}, seed {SEED}")
    print(f"{'clip':14}{'fixed':>8}{'own':>8}" + "".join(f"{d:8g}" for d in arguments.doubts))
    for name in clip_names(arguments.clips):
        whole = resolve_clip(name)
        clip = Clip(whole.name, whole.frames[: arguments.frames])
        found = [score_of_fixed([clip]), validate(rule, [clip], DENSITY, SEED)]
        for doubt in arguments.doubts:
            hold_doubt(held, doubt)
            found.append(validate(held, [clip], DENSITY, SEED))
        print(f"{clip.name:14}" + "".join(f"{psnr:8.2f}" for psnr in found), flush=True)


if __name__ == "__main__":
    main()
