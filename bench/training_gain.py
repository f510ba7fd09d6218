"""How soon a training is worth most of what it comes to: python bench/training_gain.py

Runs `scotopia train` and keeps the rule that it has written after 20 minutes, then scores that and
the last one on clips never trained on: their gains over the fixed normalized convolution.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from scotopia.cli.clips import clip_names
from scotopia.model import baselines, score
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.scotopic.training import validate
from scotopia.model.video import Clip, resolve_clip

DENSITY, SEED = 0.01, 0

#: The sixteen clips of the README.
HELD_OUT = ["out/clips/held_out", "out/clips/blind", "davis_road"]

#: Seconds between two looks at the log.
PATIENCE = 2.0


def seconds_trained(log: Path) -> float:
    """What the training itself says that it has taken, seconds; 0 before its first iteration."""
    if not log.exists():
        return 0.0
    with log.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 5]  # the last may be half written
    return float(rows[-1][1]) if len(rows) > 1 else 0.0


def train(clips: str, minutes: float, folder: Path, options: list[str]) -> tuple[Rule, Rule]:
    """Return the rules after `minutes` and in the end.

    Raises
    ------
    CalledProcessError
        If the training fails.
    """
    out, log = folder / "rule.safetensors", folder / "log.csv"
    command = ["train", clips, "--out", str(out), "--log", str(log), *options]
    early = None
    with subprocess.Popen([Path(sys.executable).with_name("scotopia"), *command]) as training:
        while training.poll() is None:
            if early is None and seconds_trained(log) >= 60 * minutes and out.exists():
                early = Rule.load(out)  # it is written whole, once a minute
            time.sleep(PATIENCE)
    if training.returncode:
        raise subprocess.CalledProcessError(training.returncode, command)
    last = Rule.load(out)
    return early or last, last


def score_of_fixed(clips: list[Clip]) -> float:
    """Mean PSNR in dB of the fixed normalized convolution, on the samples that `validate` shows."""
    fixed = baselines.BASELINES["normalized-convolution"]
    found = []
    for clip in clips:
        mask = sample_mask(clip.frames.shape, DENSITY, SEED)
        estimates = baselines.reconstruct(fixed, mask, mask * clip.frames)
        found.append(score.psnr(clip.frames, estimates))
    return float(np.mean(found))


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", default="out/clips/train")
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=HELD_OUT,
    )
    parser.add_argument("--minutes", type=float, default=20)
    arguments, options = parser.parse_known_args()
    clips = [resolve_clip(name) for name in clip_names(arguments.held_out)]
    with tempfile.TemporaryDirectory() as folder:
        early, last = train(arguments.clips, arguments.minutes, Path(folder), options)
    fixed = score_of_fixed(clips)
    then, now = (validate(rule, clips, DENSITY, SEED) for rule in (early, last))
    print(f"{len(clips)} clips, mean PSNR: the fixed normalized convolution {fixed:.2f} dB")
    print(f"after {arguments.minutes:g} minutes {then:.2f} dB, in the end {now:.2f} dB")
    print(f"{(then - fixed) / (now - fixed):.0%} of the gain in {arguments.minutes:g} minutes")


if __name__ == "__main__":
    main()
