"""Train rules that differ in one thing: python bench/experiments.py NAME...|all

Each variant starts from the same seed and is trained on the same videos for as many iterations,
few of them: what is compared is how far a shape comes in a minute or two, not how far it can come.
What has been run is kept and not run again, so that a stopped experiment goes on where it was.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plots import Point, draw
from runs import DENSITY, FRAMES, LEARNING_RATES, UNTRAINED, Lab, Score, Variant

from scotopia.cli.clips import clip_names
from scotopia.cli.evaluate import BASELINES, ORACLE
from scotopia.model.config import RuleConfig
from scotopia.model.files import write_atomically
from scotopia.model.losses import LOSSES
from scotopia.model.options import TrainOptions
from scotopia.model.score import STATIC_BELOW
from scotopia.model.video import resolve_clip

#: What every rule is compared with.
REFERENCES = (*BASELINES, UNTRAINED)

#: All variants are this shape, but for what an experiment says.
BASE = RuleConfig(
    channels=4,
    hidden=16,
    inputs=("flicker", "innovation", "trust", "recall"),
    steps_per_frame=4,
    trace_bits=10,
)

#: Written out, so that a run does not grow old when a default changes.
OPTIONS = TrainOptions(
    batch=8,
    crop=48,
    chunk=8,
    densities=(0.005, 0.01, 0.04),
    restart=0.08,
    moving_share=0.7,
    drift=0.2,
    cut=0.02,
    blackout=0.01,
    average=0.99,
)


def macs_a_frame(config: RuleConfig) -> float:
    """Multiply-accumulates per cell and frame."""
    return config.macs * config.steps_per_frame


def macs_a_pixel(config: RuleConfig) -> float:
    """Multiply-accumulates per pixel and frame."""
    return macs_a_frame(config) / config.pixels


def training_cost(config: RuleConfig) -> float:
    """Cost of a training, in arbitrary units: filtered perceptions are trained as full ones."""
    return macs_a_pixel(replace(config, perception="full"))


#: A variant, and how it did.
Scored = tuple[Variant, Score]


@dataclass(frozen=True)
class Experiment:
    """A question, and the variants that answer it.

    Attributes
    ----------
    title, question
        Heading and first paragraph of its section.
    variants
        What is trained.
    cost, x_label, log
        What the plot shows PSNR against.
    front
        Whether the plot has a Pareto front; else the points of one start are joined.
    ticks
        Names of the costs 0, 1, 2 and so on; none for numbers.
    conclude
        Says in a sentence what was found; nothing by default.
    """

    title: str
    question: str
    variants: Sequence[Variant]
    cost: Callable[[Variant], float] = lambda variant: macs_a_frame(variant.config)
    x_label: str = "MACs per cell and frame"
    log: bool = True
    front: bool = True
    ticks: Sequence[str] = ()
    conclude: Callable[[Sequence[Scored]], str] = lambda scores: ""


def _steps() -> Experiment:
    def shape(count: int) -> RuleConfig:
        # A trace lasts as many frames, or up to a third more where the count is no power of two.
        return replace(BASE, steps_per_frame=count, trace_bits=8 + math.ceil(math.log2(count)))

    return Experiment(
        "Steps per frame",
        "Information travels one pixel a step, and each step costs as much as any other. The "
        "weights of the start as a filter were found at 4 steps a frame, so that the other counts "
        "start further from their best; the random starts know nothing of that.",
        [
            *(Variant(f"{n}", shape(n), "filter") for n in (1, 2, 3, 4, 6, 8)),
            *(Variant(f"{n}", shape(n), "random") for n in (1, 4, 8)),
        ],
        lambda variant: variant.config.steps_per_frame,
        "steps per frame",
        log=False,
        front=False,
        ticks=("", *"12345678"),
    )


def _architectures() -> Experiment:
    def named(label: str, **changes: object) -> Variant:
        return Variant.best_start(label, replace(BASE, **changes))

    return Experiment(
        "Architectures",
        "Perception, width of the hidden layer, channels, update and fire rate, against what a "
        "cell computes in a frame. The base is gated, full 3x3 perception, 4 channels, 16 hidden "
        "neurons, and every cell fires. Depthwise and residual rules and those of 4 neurons have "
        "no room for the filter: compare them with the random starts.",
        [
            named("base"),
            named("hidden 4", hidden=4),
            named("hidden 8", hidden=8),
            named("hidden 32", hidden=32),
            named("channels 8", channels=8),
            named("channels 16", channels=16),
            named("sobel", perception="sobel"),
            named("sobel, 7 hidden, 2 channels", **TINY),
            named("sobel, hidden 32", perception="sobel", hidden=32),
            named("depthwise", perception="depthwise"),
            named("residual", kind="residual"),
            named("fire rate 0.5", fire_rate=0.5),
            Variant("base, random", BASE, "random"),
            Variant("sobel, random", replace(BASE, perception="sobel"), "random"),
        ],
    )


#: The smallest shape with room for the filter.
TINY = {
    "perception": "sobel",
    "hidden": 7,
    "channels": 2,
}


def _pixels() -> Experiment:
    def cell(block: int, hidden: int) -> RuleConfig:
        # As many channels beside the predictions, whatever the block.
        return replace(BASE, block=block, channels=block**2 + 3, hidden=hidden)

    return Experiment(
        "Pixels of a cell",
        "A cell that stands for n x n pixels has a prediction and a register for each of them. "
        "There are fewer cells, each is larger, and what it tells its neighbours travels n pixels "
        "a step. All start at random, because the filter is written down for one pixel a cell.",
        [
            Variant("1 x 1", cell(1, 16), "random"),
            Variant("2 x 2", cell(2, 16), "random"),
            Variant("2 x 2, hidden 32", cell(2, 32), "random"),
            Variant("4 x 4", cell(4, 16), "random"),
            Variant("4 x 4, hidden 32", cell(4, 32), "random"),
        ],
        lambda variant: macs_a_pixel(variant.config),
        "MACs per pixel and frame",
    )


def _losses() -> Experiment:
    return Experiment(
        "Losses",
        "What it costs to learn without the ground truth. The observed loss compares predictions "
        "with the samples that arrive in the next frame, and with nothing else; the dense ones see "
        "every pixel.",
        [Variant(loss, BASE, start, loss) for start in ("filter", "random") for loss in LOSSES],
        lambda variant: tuple(LOSSES).index(variant.loss),
        "loss",
        log=False,
        front=False,
        ticks=tuple(LOSSES),
        conclude=_price_of_self_supervision,
    )


def _price_of_self_supervision(scores: Sequence[Scored]) -> str:
    found = {(variant.start, variant.loss): score.all for variant, score in scores}
    prices = [
        f"{found[start, 'log-dense'] - found[start, 'observed']:.2f} dB from the start "
        f"{'as a filter' if start == 'filter' else 'at random'}"
        for start in LEARNING_RATES
        if {(start, "log-dense"), (start, "observed")} <= found.keys()
    ]
    return f"What learning without the ground truth costs: {', '.join(prices)}." if prices else ""


EXPERIMENTS = {
    "architectures": _architectures(),
    "steps": _steps(),
    "losses": _losses(),
    "pixels": _pixels(),
}

#: What `all` does, the cheapest first.
NAMES = ("baselines", *EXPERIMENTS)


def run(names: Iterable[str], lab: Lab, out: Path) -> None:
    """Do what has not been done yet, and write the report after each experiment."""
    chosen = list(names)
    for name in REFERENCES:
        lab.score_baseline(name)
    write_report(lab, out)
    variants = [v for name in chosen if name in EXPERIMENTS for v in EXPERIMENTS[name].variants]
    # Experiments share runs; the cheapest come first, so that a stopped evening has most of them.
    files = {lab.rule_run(variant): variant for variant in reversed(variants)}
    todo = [variant for path, variant in files.items() if not path.exists()]
    todo.sort(key=lambda variant: training_cost(variant.config))
    start = time.monotonic()
    for number, variant in enumerate(todo, 1):
        lab.train(variant)
        found = lab.read(lab.rule_run(variant))
        assert found is not None
        minutes = (time.monotonic() - start) / 60
        print(
            f"{number} of {len(todo)}, {minutes:.1f} min: {variant.label} ({variant.start}, "
            f"{variant.loss}) {found.all:.2f} dB",
            flush=True,
        )
        write_report(lab, out)


def write_report(lab: Lab, out: Path) -> None:
    """Write tables and plots of what has been run."""
    reference = {name: found for name in REFERENCES if (found := lab.read(lab.baseline_run(name)))}
    oracle = reference[ORACLE]
    static = sum(motion < STATIC_BELOW for motion in oracle.motion.values())
    held_out = ", ".join(oracle.psnr)
    options = lab.options
    sections = [
        "# Experiments\n",
        "Made by `python bench/experiments.py all`; do not edit.\n",
        f"Every rule is trained for {options.iterations} iterations of {options.batch} videos of "
        f"{options.crop} x {options.crop} pixels and {options.chunk} frames, at a learning rate of "
        f"{LEARNING_RATES['filter']:g}, or {LEARNING_RATES['random']:g} from a random start, seed "
        f"{options.seed}, "
        f"on the {len(lab.train_clips)} clips of `scripts/training_clips.py`'s `train`. That is a "
        "minute or two of one core: differences of a tenth of a decibel or two may be luck, and a "
        "larger rule may gain from more. Scores are mean PSNRs in dB of the first "
        f"{FRAMES} frames of {len(oracle.psnr)} clips never trained on ({static} static; "
        f"{held_out}), {DENSITY:.0%} of the pixels shown. State bits: a cell's state in 32-bit "
        "floats. Start: *filter* is the hand-written start of `model/start.py`, *random* the usual "
        "one.\n",
        "## Statistical baselines\n",
        f"And `{UNTRAINED}`: the weights of the start as a filter, before any training.\n",
        _table(
            ("baseline", "static", "moving", "all", "to oracle"),
            [(name, *_scores(found, oracle)) for name, found in reference.items()],
        ),
    ]
    for name, experiment in EXPERIMENTS.items():
        found = [(variant, lab.read(lab.rule_run(variant))) for variant in experiment.variants]
        scores = [(variant, score) for variant, score in found if score is not None]
        if not scores:
            continue
        missing = [variant for variant, score in found if score is None]
        sections += _section(name, experiment, scores, missing, oracle)
        means = {baseline: score.all for baseline, score in reference.items()}
        points = [
            Point(
                experiment.cost(variant),
                score.all,
                variant.label if experiment.front else f"{score.all:.2f}",
                variant.start,
            )
            for variant, score in scores
        ]
        draw(
            out / f"{name}.svg",
            experiment.title,
            experiment.x_label,
            points,
            means,
            log=experiment.log,
            front=experiment.front,
            ticks=experiment.ticks,
        )
    text = "\n".join(sections)
    write_atomically(out / "experiments.md", text)


def _section(
    name: str,
    experiment: Experiment,
    scores: Sequence[Scored],
    missing: Sequence[Variant],
    oracle: Score,
) -> list[str]:
    blocks = {variant.config.block for variant in experiment.variants} != {1}
    heads = ["rule", "start", "parameters", "MACs per cell and frame"]
    heads += ["MACs per pixel and frame"] * blocks
    heads += ["state bits", "static", "moving", "all", "to oracle"]
    rows = []
    for variant, score in scores:
        config = variant.config
        row = [variant.label, variant.start, f"{config.parameters:,}"]
        row += [f"{macs_a_frame(config):,.0f}"]
        row += [f"{macs_a_pixel(config):,.0f}"] * blocks
        row += [f"{32 * len(config.channel_names):,}", *_scores(score, oracle)]
        rows.append(row)
    return [
        f"## {experiment.title}\n",
        f"{experiment.question}\n",
        _table(heads, rows),
        *(f"{told}\n" for told in [experiment.conclude(scores)] if told),
        *(
            [f"Not run yet: {', '.join(f'{v.label} ({v.start})' for v in missing)}.\n"]
            * bool(missing)
        ),
        f"![{experiment.title}: PSNR of each rule, and of the baselines]({name}.svg)\n",
    ]


def _scores(score: Score, oracle: Score) -> list[str]:
    means = [f"{mean:.2f}" for mean in (score.static, score.moving, score.all)]
    return [*means, f"{score.all - oracle.all:+.2f}"]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---" if place == 0 else "---:" for place in range(len(heads))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"all, {', '.join(NAMES)}")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/experiments"))
    parser.add_argument(
        "--clips", nargs="+", default=["out/clips/train"], help="clips, folders of clips"
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=["out/clips/held_out", "out/clips/blind", "davis_road"],
        help="likewise",
    )
    arguments = parser.parse_args()
    names = NAMES if "all" in arguments.names else arguments.names
    for name in names:
        if name not in NAMES:
            parser.error(f"experiment {name!r} is unknown: choose out of all, {', '.join(NAMES)}")
    lab = Lab(
        arguments.out / "runs",
        [resolve_clip(name) for name in clip_names(arguments.clips)],
        [resolve_clip(name) for name in clip_names(arguments.held_out)],
        replace(OPTIONS, iterations=arguments.iterations),
    )
    run(names, lab, arguments.out)


if __name__ == "__main__":
    main()
