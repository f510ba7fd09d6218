"""A card for each shipped float rule, scored on clips never trained on: python bench/zoo.py"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from scotopia.cli.clips import clip_names
from scotopia.cli.evaluate import (
    ORACLE,
    Evaluation,
    Shown,
    evaluate,
    mean_scores,
    methods,
)
from scotopia.cli.rules import SHIPPED
from scotopia.graph.errors import InputError
from scotopia.model.files import write_atomically
from scotopia.model.rule import Rule
from scotopia.model.video import Clip, resolve_clip
from scotopia.quantize.sweep import pareto_front

DENSITY = 0.01
FIXED = "normalized-convolution"
REFERENCES = ("last-seen", FIXED, ORACLE)


def shipped_float_rules() -> dict[str, Rule]:
    """Load the float rules that the package carries, by name, the smallest first."""
    found = {}
    for name, path in SHIPPED.items():
        try:
            found[name] = Rule.load(Path(str(path)))
        except InputError:  # an integer rule
            continue
    return dict(sorted(found.items(), key=lambda item: item[1].parameter_count))


def score(
    rules: dict[str, Rule], clips: Sequence[Clip], seeds: Sequence[int]
) -> tuple[Evaluation, Sequence[str]]:
    """Score all rules and the references on the same samples.

    Raises
    ------
    InputError
        If a rule was trained on one of the clips.
    """
    for name, rule in rules.items():
        known = set(rule.training_record.get("clips", ())) & {clip.name for clip in clips}
        if known:
            raise InputError(
                f"rule {name} was trained on {', '.join(sorted(known))}: score it on other clips"
            )
    estimators = methods([], REFERENCES)
    estimators |= {name: methods([rule], [])["nca"] for name, rule in rules.items()}
    show = partial(Shown.by_protocol, density=DENSITY)
    found = evaluate(
        clips,
        estimators,
        lambda clip, seed: show(clip, seed=seed),
        seeds,
        on_progress=lambda clip, method: print(f"{clip}: {method}", flush=True),
    )
    return found, list(estimators)


def worst_margin(evaluation: Evaluation, name: str) -> tuple[float, str]:
    """Smallest lead over the fixed normalized convolution in dB, and the clip where it is."""
    return min(
        (row[name]["psnr"] - row[FIXED]["psnr"], clip) for clip, row in evaluation.clips.items()
    )


def overview(evaluation: Evaluation, rules: dict[str, Rule], names: Sequence[str]) -> str:
    """Table with a row for each reference and each rule."""
    lines = [
        "| rule | parameters | MACs per cell and frame | static | moving | all | SSIM "
        "| least lead over the fixed normalized convolution |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        cost = ["", ""]
        if name in rules:
            config = rules[name].config
            cost = [f"{config.parameters:,}", f"{config.macs * config.steps_per_frame:,}"]
        margin, clip = worst_margin(evaluation, name)
        lead = "" if name == FIXED else f"{margin:+.2f} ({clip})"
        lines.append(f"| {' | '.join([name, *cost, *_scores(evaluation, name), lead])} |")
    return "\n".join([*lines, "", _front(evaluation, rules)])


def _front(evaluation: Evaluation, rules: dict[str, Rule]) -> str:
    """Tell which rules are worth their size."""
    names = list(rules)
    costs = [rules[name].config.macs * rules[name].config.steps_per_frame for name in names]
    means = mean_scores(evaluation.unseen.values())
    front = pareto_front(costs, [means[name]["psnr"] for name in names])
    beaten = [name for place, name in enumerate(names) if place not in front]
    told = f"On the Pareto front of PSNR against MACs: {', '.join(names[i] for i in front)}."
    return told + (f" Not on it: {', '.join(beaten)}." if beaten else "")


def card(name: str, rule: Rule, evaluation: Evaluation) -> str:
    """Describe one rule: what it costs, how well it does, and how it was made."""
    config, record = rule.config, rule.training_record
    static, moving, mean, ssim = _scores(evaluation, name)
    margin, clip = worst_margin(evaluation, name)
    options = record.get("options", {})
    facts = {
        "shape": f"{config.kind}, {config.perception} perception, {config.channels} channels, "
        f"{config.hidden} hidden neurons, inputs {', '.join(config.inputs)}",
        "parameters": f"{config.parameters:,}",
        "MACs": f"{config.macs:,} per cell and step, {config.macs * config.steps_per_frame:,} "
        f"per cell and frame ({config.steps_per_frame} steps)",
        "state": f"{len(config.channel_names)} channels, {32 * len(config.channel_names)} bits "
        "in floats, per cell",
        "PSNR, 1 % of the pixels": f"static {static} dB, moving {moving} dB, all {mean} dB; "
        f"SSIM {ssim}",
        f"least lead over the fixed {FIXED}": f"{margin:+.2f} dB, on {clip}",
        "trained on": f"{', '.join(record.get('clips', ())) or 'no real clips'}; "
        f"{record.get('synthetic_clips', 0)} synthetic clips",
        "started as": record.get("start", "?"),
        "training": f"{record.get('iterations', '?')} iterations, "
        f"optimizer {options.get('optimizer', '?')}, loss {options.get('loss', '?')}, "
        f"{record.get('seconds', 0) / 60:.0f} minutes",
        "command": f"`{record.get('command', '?')}`",
    }
    return "\n".join([f"## {name}\n", *(f"- {key}: {value}" for key, value in facts.items())])


def _scores(evaluation: Evaluation, name: str) -> list[str]:
    groups = (evaluation.static, evaluation.moving, evaluation.unseen)
    means = [mean_scores(group.values()) for group in groups]
    return [
        *(f"{mean[name]['psnr']:.2f}" if mean else "" for mean in means),
        f"{means[-1][name]['ssim']:.3f}",
    ]


def main() -> None:
    """Score the rules and write their cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/zoo.md"))
    parser.add_argument(
        "--held-out", nargs="+", default=["out/clips/held_out", "out/clips/blind", "davis_road"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rules", type=Path, nargs="+", help="rule files to score beside the shipped ones"
    )
    arguments = parser.parse_args()
    rules = shipped_float_rules()
    rules |= {path.stem: Rule.load(path) for path in arguments.rules or ()}
    rules = dict(sorted(rules.items(), key=lambda item: item[1].parameter_count))
    clips = [resolve_clip(name) for name in clip_names(arguments.held_out)]
    evaluation, names = score(rules, clips, arguments.seeds)
    static = len(evaluation.static)
    lengths = np.array([len(clip.frames) for clip in clips])
    text = "\n\n".join(
        [
            "# The zoo: rules that are shipped, by size",
            "Made by `python bench/zoo.py`; do not edit.",
            f"Scored by the protocol on {len(clips)} whole clips of {lengths.min()} to "
            f"{lengths.max()} frames that no rule was trained on ({static} static: "
            f"{', '.join(evaluation.static)}; moving: {', '.join(evaluation.moving)}), "
            f"{DENSITY:.0%} of the pixels shown, mean of the seeds "
            f"{', '.join(map(str, arguments.seeds))}. PSNR in dB.",
            overview(evaluation, rules, names),
            *(card(name, rule, evaluation) for name, rule in rules.items()),
        ]
    )
    write_atomically(arguments.out, text + "\n")


if __name__ == "__main__":
    main()
