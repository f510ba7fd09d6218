"""The command `scotopia`: one sub-command a stage."""

import errno
import json
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from typer.core import TyperCommand
from typer.exceptions import TyperException

from scotopia.graph.errors import InputError
from scotopia.model.files import rule_kind, write_atomically

from .outputs import (
    CHECKPOINT,
    DEMO_FILES,
    EMITTED_FILES,
    PROOF_FILES,
    SWEEP_FILES,
    Reads,
    Writes,
    check_outputs,
)
from .stop import ended_by_signals

# torch, amaranth and cocotb take seconds to import: each command imports what it needs.

app = typer.Typer(
    name="scotopia",
    help="From a neural cellular automaton that sees a video by 1 % of its pixels to Verilog.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


#: No option counts further, and what computes with them has no more bits for all of them.
MOST = 2**31 - 1


class SubCommand(TyperCommand):
    """Sub-command that takes no empty text, and no number that is not finite or beyond `MOST`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and refuse what no option can mean."""
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
            given = typed.get(parameter.name)
            for text in given if isinstance(given, list | tuple) else [given]:
                # An empty path would be the folder that one is in.
                if isinstance(text, str) and not text.strip():
                    remedy = "" if parameter.required else ", or leave it out"
                    raise InputError(f"{name} is empty: give it a value{remedy}")
            value = ctx.params.get(parameter.name)
            if isinstance(value, int | float) and not abs(value) <= MOST:
                raise InputError(f"{name} {value} is no number up to {MOST}: give a smaller one")
        return rest


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a sub-command, whose outputs are checked before it is called."""

    @wraps(function)
    def checked(**given: Any) -> None:
        check_outputs(function, given)
        function(**given)

    name = function.__name__.rstrip("_")  # import is a word of Python's
    app.command(name, cls=SubCommand)(checked)
    return function


RuleArgument = Annotated[
    str,
    Reads(),
    typer.Argument(
        help="Rule file, or a shipped one: retina, lizard (float), retina-int, lizard-int."
    ),
]
JsonOption = Annotated[
    Path | None,
    Writes(),
    typer.Option("--json", help="Also write the result to this file, for machines."),
]


def parse_density(density: float) -> float:
    """Refuse a density at once, not when a mask is drawn."""
    from scotopia.model.sampling import check_density

    check_density(density)
    return density


DensityOption = Annotated[
    float, typer.Option(help="Share of the pixels shown, in (0, 1].", callback=parse_density)
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of which pixels are shown.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side of a clip's frames, pixels; by default 128, or its own if it is smaller."
    ),
]
HeightOption = Annotated[int, typer.Option(min=1, max=1024, help="Rows of cells.")]
WidthOption = Annotated[int, typer.Option(min=1, max=1024, help="Cells a row.")]


def progress_bar() -> Progress:
    """Progress bar that all commands share."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@command
def demo(
    out: Annotated[
        Path,
        Writes(folder=True, files=DEMO_FILES),
        typer.Option("--out", "-o", help="Folder to write."),
    ] = Path("out/demo"),
    clip: Annotated[
        str, Reads(), typer.Option(help="davis_road (in the package), or any clip.")
    ] = "davis_road",
    size: SizeOption = None,
    density: DensityOption = 0.01,
    seed: SeedOption = 0,
    height: HeightOption = 16,
    width: WidthOption = 16,
    frames: Annotated[int, typer.Option(min=1, help="Frames that the Verilog runs.")] = 8,
) -> None:
    """Reconstruct a clip from 1 % of its pixels, emit the Verilog, prove it, write a report."""
    from .demo import run_demo

    with progress_bar() as progress:
        passed = run_demo(out, clip, size, density, seed, (height, width, frames), progress)
    console.print(f"[bold]Open {out / 'report.html'}[/bold]")
    if not passed:
        raise typer.Exit(1)


def list_presets(wanted: bool) -> None:
    """Print the presets and end, if that is what the user wants."""
    if wanted:
        from .train_scotopic import preset_table

        console.print(preset_table())
        raise typer.Exit


def shape(text: str) -> Any:
    """Option for the rule's shape."""
    return typer.Option(help=text, rich_help_panel="Shape of the rule (default: the preset's)")


def training(text: str, low: int | None = None) -> Any:
    """Option for the training, of a number from `low` on."""
    return typer.Option(help=text, min=low, rich_help_panel="Training (default: the preset's)")


def quantization(text: str) -> Any:
    """Option for training on the grid of an integer rule."""
    return typer.Option(help=text, rich_help_panel="Quantization")


def learned(text: str) -> Any:
    """Option for a task other than the scotopic one."""
    return typer.Option(help=text, rich_help_panel="Other tasks")


def videos(text: str, low: int | None = None) -> Any:
    """Option for the videos that a rule is trained on, of a number from `low` on."""
    return typer.Option(help=text, min=low, rich_help_panel="Videos (default: the preset's)")


@command
def train(
    out: Annotated[
        Path, Writes(suffix=CHECKPOINT), typer.Option("--out", "-o", help="Rule file to write.")
    ],
    clips: Annotated[
        list[str] | None,
        Reads(),
        typer.Argument(help="Clips to train on, or folders of clips, beside the synthetic ones."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="scotopic; growing, which grows --target of one cell; or FILE.py:CLASS, a task of "
            "yours, whose file is run."
        ),
    ] = "scotopic",
    target: Annotated[
        str | None, Reads(), learned("Picture with alpha that grows, or lizard.")
    ] = None,
    args: Annotated[
        str, learned("Arguments of the task's class, such as 'padding=8, channels=16'.")
    ] = "",
    preset: Annotated[
        str | None, typer.Option(help="What all other options start from; default retina.")
    ] = None,
    _list_presets: Annotated[
        bool,
        typer.Option(
            "--list-presets", help="Show the presets.", callback=list_presets, is_eager=True
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside --out.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu (all that was measured), cuda, cuda:1 or mps.")
    ] = "auto",
    validate: Annotated[
        list[str] | None,
        Reads(),
        typer.Option(help="Clips to score the rule on; by default four synthetic ones."),
    ] = None,
    validate_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two scores; 0 for one at the end.")
    ] = 60.0,
    size: SizeOption = None,
    log: Annotated[
        Path | None, Writes(), typer.Option(help="CSV file with a row an iteration.")
    ] = None,
    synthetic: Annotated[int | None, videos("Synthetic clips to train on.", 0)] = None,
    real_share: Annotated[
        float | None, videos("Share of the shots from real clips, if there are synthetic ones.")
    ] = None,
    crop: Annotated[int | None, videos("Side of the squares trained on, pixels.", 1)] = None,
    batch: Annotated[int | None, videos("Videos that run side by side.", 1)] = None,
    densities: Annotated[
        str | None, videos("Lowest, likeliest, highest share of the pixels shown, with commas.")
    ] = None,
    moving_share: Annotated[
        float | None, videos("Share of the real shots from clips in which much moves.")
    ] = None,
    zoom: Annotated[float | None, videos("Share of the shots at half or twice their size.")] = None,
    blend: Annotated[float | None, videos("Share of the shots that show two at once.")] = None,
    restart: Annotated[float | None, videos("Chance that a video ends with a chunk.")] = None,
    cut: Annotated[float | None, videos("Chance of a cut before a chunk.")] = None,
    blackout: Annotated[float | None, videos("Chance that a chunk shows no pixel.")] = None,
    contrast: Annotated[
        float | None, videos("Least contrast of a shot, as a share of its clip's; up to 1.")
    ] = None,
    drift: Annotated[float | None, videos("Share of the shots whose light changes.")] = None,
    flutter: Annotated[
        float | None, videos("Share of the shots whose light differs from frame to frame.")
    ] = None,
    sensor_share: Annotated[
        float | None, videos("Share of the videos seen through a sensor, up to the flaws below.")
    ] = None,
    photons: Annotated[float | None, videos("Photons of a mid-gray pixel in a frame.")] = None,
    read_noise: Annotated[float, videos("Electrons; needs --photons.")] = 0.0,
    dead: Annotated[float, videos("Share of pixels that read black.")] = 0.0,
    stuck: Annotated[float, videos("Share of pixels that read white.")] = 0.0,
    gain_mismatch: Annotated[float, videos("Standard deviation of the pixels' gains.")] = 0.0,
    kind: Annotated[str | None, shape("gated or residual.")] = None,
    channels: Annotated[int | None, shape("Learned channels of the state.")] = None,
    hidden: Annotated[int | None, shape("Neurons of the hidden layer.")] = None,
    inputs: Annotated[str | None, shape("What a cell sees of samples, names with commas.")] = None,
    steps_per_frame: Annotated[int | None, shape("Steps between two frames.")] = None,
    border: Annotated[str | None, shape("zero, replicate or wrap.")] = None,
    trace_bits: Annotated[int | None, shape("A trace lasts 2**trace_bits steps.")] = None,
    perception: Annotated[str | None, shape("full, depthwise or sobel.")] = None,
    fire_rate: Annotated[float | None, shape("Share of cells that update in a step.")] = None,
    block: Annotated[int | None, shape("A cell stands for block x block pixels.")] = None,
    start: Annotated[
        str | None,
        Reads(),
        training(
            "filter, written by hand where the shape has room for it; random; or a float rule that "
            "is no larger, by its file or name. Of other tasks a float graph."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        Reads(),
        training("Float rule whose predictions are learned in place of the truth."),
    ] = None,
    iterations: Annotated[int | None, training("Optimizer steps.", 1)] = None,
    chunk: Annotated[int | None, training("Frames that a gradient reaches back.", 1)] = None,
    loss: Annotated[
        str | None,
        training("dense, log-dense or observed; or FILE.py:FUNCTION of yours, whose file is run."),
    ] = None,
    optimizer: Annotated[
        str | None, training("soap, or adam, the better on a grid of integers.")
    ] = None,
    learning_rate: Annotated[float | None, training("Peak of the learning rate.")] = None,
    average: Annotated[float | None, training("Decay of the weights' running average.")] = None,
    quantize: Annotated[
        str | None,
        Reads(),
        quantization(
            "Rule to start from, float or integer: OUT becomes an integer rule. Of other tasks an "
            "integer rule of any graph, which keeps its formats."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None, quantization("Bits of a weight, 2 to 16; default 8.")
    ] = None,
    update_bits: Annotated[
        int | None, quantization("Bits of weights whose errors add up; default as the others.")
    ] = None,
    state_bits: Annotated[
        int | None, quantization("Bits of a state channel, 2 to 16; default 10.")
    ] = None,
    hidden_bits: Annotated[
        int | None, quantization("Bits of a hidden neuron, 2 to 16; default 8.")
    ] = None,
    gate_bits: Annotated[int | None, quantization("Bits of a gate, 2 to 16; default 8.")] = None,
    scales: Annotated[
        str | None, quantization("Of weights: one by output, kernel or weight; default kernel.")
    ] = None,
    dither: Annotated[
        int | None, quantization("Random bits of the update's rounding, 0 to 8; default 0.")
    ] = None,
    rounding: Annotated[
        str | None, quantization("RND, TRN or another of ap_fixed's; default RND.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, clips and samples.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Train a rule by truncated backpropagation through time.

    Of the task scotopic a float rule; with --quantize an integer rule, whose numbers sit on their
    grids already while it is trained.

    Once a minute, at Ctrl-C and at the end, OUT gets the rule, and OUT's folder
    a checkpoint, from which --resume goes on as if nothing had happened, with
    more --iterations if there are to be more. At the end OUT is the rule that
    scored best. When it is scored depends on the machine's speed: with
    --validate-every 0, only the last is.
    Exit status 2 if the training diverges: OUT then holds the last good rule.
    """
    given = dict(locals())
    from .train import Job, run_training

    moved = {
        "iterations": iterations,
        "batch": batch,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "average": average,
        "seed": seed,
    }
    course: Any
    if task != "scotopic":
        from .train_task import learning

        for name, value in given.items():
            if name not in {*moved, *OF_ALL_TASKS} and value:
                what = "clips are" if name == "clips" else f"--{name.replace('_', '-')} is"
                raise InputError(f"{what} for task scotopic: leave it out for {task}")
        course = learning(task, target, args, loss, start, quantize, moved)
    else:
        from .train_scotopic import videos_of

        for name in ("target", "args"):
            if given[name]:
                raise InputError(f"{name} {given[name]} is for other tasks: add --task growing")
        course = videos_of(given, moved)
    job = Job(out, course, validate_every, resume, device, log, command_line())
    rule = run_training(job, progress_bar(), console)
    psnr = rule.training_record["validation_psnr"]
    scored = "" if psnr is None else f", validation {psnr:.2f} dB"
    console.print(f"{out}: {rule.parameter_count} parameters{scored}")
    write_json(json_file, rule.training_record)


#: Options of `train` that every task has, beside those that move the weights.
OF_ALL_TASKS = frozenset(
    {"out", "resume", "device", "validate_every", "log", "start", "quantize", "loss", "json_file"}
    | {"task", "target", "args"}
)


@command
def evaluate(
    clips: Annotated[
        list[str] | None,
        Reads(),
        typer.Argument(
            help="Clips: .npz, .npy, video, folder of images or of clips, or davis_road; none for "
            "a rule that takes no events."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        Reads(),
        typer.Option(help="Rule file or shipped name, up to one float and one integer rule."),
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="all, none, or names with commas; by default the three quickest.")
    ] = "last-seen,normalized-convolution,normalized-convolution-oracle",
    density: DensityOption = 0.01,
    seed: SeedOption = 0,
    # One seed's PSNR differs from another's by 0.1 dB: the mean of more would be told no better.
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Score the mean over this many seeds, from --seed on, up to 1000."
        ),
    ] = 1,
    size: SizeOption = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Only the first frames of a clip, 21 or more; of a rule without events, 100 by "
            "default."
        ),
    ] = None,
    photons: Annotated[
        float | None,
        typer.Option(help="Photons that a mid-gray pixel collects a frame; default: no noise."),
    ] = None,
    read_noise: Annotated[
        float, typer.Option(help="Standard deviation in electrons; needs --photons.")
    ] = 0.0,
    dead: Annotated[float, typer.Option(help="Share of pixels that read black, 0 to 1.")] = 0.0,
    stuck: Annotated[float, typer.Option(help="Share of pixels that read white, 0 to 1.")] = 0.0,
    gain_mismatch: Annotated[
        float, typer.Option(help="Standard deviation of the pixels' gains, whose mean is 1.")
    ] = 0.0,
    picture: Annotated[
        Path | None,
        Writes(),
        typer.Option(help="Draw all methods on a late frame of each clip, .png."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Score rules and baselines on clips.

    A clip is static where the median pixel changes by less than 0.02 in ten frames. Clips that a
    rule was trained on stand last and count for no mean.

    A rule that takes no events runs by itself, from its first state on SIZE x SIZE cells, 64 by
    default. Shown is what its channels become, and how far integers come to be from floats.
    """
    from dataclasses import asdict, replace

    import numpy as np

    from scotopia.model.sampling import seen_mask
    from scotopia.model.sensor import Sensor

    from . import evaluate as protocol
    from .clips import read_clips

    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"picture {picture} is not named .png: choose such a name")
    if frames is not None and frames < 1:
        raise InputError(f"frames {frames} is below 1: give more, or leave it out")
    sensor = Sensor(photons, read_noise, dead, stuck, gain_mismatch)
    names = rule or ["retina", "retina-int"]
    rules = [load_rule(name) for name in names]
    graphs = protocol.by_kind(rules)
    blind = [name for name, one in zip(names, graphs.values(), strict=True) if not one.events]
    if blind:
        if len(blind) < len(names) or clips:
            raise InputError(
                f"rule {blind[0]} takes no events: evaluate it without clips, and without rules "
                "that see any"
            )
        found = evaluate_growth(
            dict(zip(names, graphs.values(), strict=True)), frames, size, picture
        )
        costs = {protocol.name_of(rule): protocol.cost(rule) for rule in rules}
        print_costs(costs)
        training = {protocol.name_of(rule): training_of(rule) for rule in rules}
        write_json(json_file, {**found, "cost": costs, "training": training})
        return
    if not clips:
        raise InputError(f"rule {names[0]} sees video: name a clip, such as davis_road")
    estimators = protocol.methods(rules, protocol.baseline_names(baselines))
    # All clips are read before the first is scored: a bad one is reported at once.
    videos = [replace(clip, frames=clip.frames[:frames]) for clip in read_clips(clips, size)]
    inputs = {*protocol.baseline_names(baselines)}.union(
        *(one.graph.inputs for one in graphs.values())
    )
    for video in videos:
        for number in range(seed, seed + seeds):
            seen_mask(video.name, video.frames.shape, density, number, inputs)
    with progress_bar() as progress:
        task = progress.add_task("evaluate", total=len(videos) * len(estimators) * seeds)

        def on_progress(clip: str, method: str) -> None:
            progress.update(task, advance=1, description=f"{clip}: {method}")

        def on_clip(clip: str, scores: dict[str, dict[str, float]]) -> None:
            if not console.is_terminal:  # where there is no bar to watch
                found = ", ".join(f"{name} {one['psnr']:.2f} dB" for name, one in scores.items())
                console.print(f"{clip}: {found}", soft_wrap=True, markup=False, highlight=False)

        result = protocol.evaluate(
            videos,
            estimators,
            lambda clip, seed: protocol.Shown.by_protocol(clip, density, seed, sensor),
            range(seed, seed + seeds),
            {name for rule in rules for name in training_of(rule).get("clips", [])},
            on_progress,
            on_clip,
        )

    conditions = f"density {density:g}, "
    conditions += f"seeds {seed} to {seed + seeds - 1}" if seeds > 1 else f"seed {seed}"
    if not sensor.is_ideal:
        conditions += f", {sensor}"
    # Rather wider than the terminal than with figures cut short.
    wide = Console(width=max(console.width, 200))
    for figure, heading in (("psnr", "PSNR in dB"), ("ssim", "SSIM")):
        wide.print(f"{heading}, {conditions}", highlight=False)
        wide.print(protocol.score_table(result, figure))
    costs = {protocol.name_of(rule): protocol.cost(rule) for rule in rules}
    print_costs(costs)
    if picture is not None:
        from .contact_sheet import contact_sheet
        from .page import png

        image = contact_sheet(result, f"Reconstruction, {conditions}")
        write_atomically(picture, png(np.asarray(image)))
    write_json(
        json_file,
        {
            "density": density,
            "seed": seed,
            "seeds": seeds,
            "sensor": asdict(sensor),
            **protocol.to_json(result),
            "cost": costs,
            "training": {protocol.name_of(rule): training_of(rule) for rule in rules},
        },
    )


def evaluate_growth(
    rules: dict[str, Any], frames: int | None, size: int | None, picture: Path | None
) -> dict[str, Any]:
    """Run rules that are given nothing, by what the user calls them; show and return what they do.

    At most one float and one integer rule.
    """
    import numpy as np

    from scotopia.model.growing.task import GrowingTask
    from scotopia.quantize.integer_rule import IntegerRule

    from . import growth as growing
    from .evaluate import name_of
    from .page import png
    from .rules import check_alike

    by_kind = {name_of(rule): rule for rule in rules.values()}
    for name, rule in rules.items():
        if not isinstance(rule, IntegerRule) and "nca-int" in by_kind:
            check_alike(name, rule, by_kind["nca-int"])
    learnt = next(filter(None, (GrowingTask.of(rule.training) for rule in rules.values())), None)
    count, side = frames or growing.FRAMES, size or growing.SIDE
    height, width = (side, side) if size or learnt is None else learnt.target.shape[1:]
    with progress_bar() as progress:
        total = (count + (learnt is not None)) * len(by_kind)
        bar = progress.add_task("evaluate", total=total)

        def advance(name: str) -> None:
            progress.update(bar, advance=1, description=name)

        growth = growing.grow(by_kind, count, height, width, advance)
        figures = None if learnt is None else growing.task_figures(learnt, by_kind, advance)
    steps = count * growth.steps_per_frame
    title = f"{width} x {height} cells, {count} frames, {steps} steps"
    # Rather wider than the terminal than with figures cut short.
    wide = Console(width=max(console.width, 200))
    wide.print(title, highlight=False)
    wide.print(growing.growth_table(growth))
    if picture is not None:
        sheet = growing.growth_sheet(growth, f"{', '.join(rules)}: {title}")
        write_atomically(picture, png(np.asarray(sheet)))
    if figures is not None:
        for name in by_kind:
            told = (f"{what} {figures[name][what]:.2f} dB" for what in growing.TASK_FIGURES)
            console.print(f"{name}, PSNR to its target: " + ", ".join(told))
    return growing.growth_json(growth) | {"task": figures}


def print_costs(costs: dict[str, dict[str, int]]) -> None:
    """Print what rules cost, a line each."""
    for name, count in costs.items():
        console.print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in count.items()))


@command
def quantize(
    rule: RuleArgument,
    out: Annotated[Path, Writes(), typer.Option("--out", "-o", help="Integer rule file to write.")],
    weight_bits: Annotated[int, typer.Option(help="Bits of a weight, 2 to 16.")] = 8,
    update_bits: Annotated[
        int | None,
        typer.Option(help="Bits of weights whose errors add up; by default as the others."),
    ] = None,
    state_bits: Annotated[int, typer.Option(help="Bits of a state channel, 2 to 16.")] = 10,
    hidden_bits: Annotated[int, typer.Option(help="Bits of a hidden neuron, 2 to 16.")] = 8,
    gate_bits: Annotated[int, typer.Option(help="Bits of a gate, 2 to 16.")] = 8,
    rounding: Annotated[str, typer.Option(help="RND, TRN or another of ap_fixed's.")] = "RND",
    calibrate: Annotated[
        list[str] | None,
        Reads(),
        typer.Option(
            help="Clip to find ranges with, and to search on, or folder of clips; may be repeated; "
            "by default four synthetic ones."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How to choose ranges: max, percentile (99.99) or mse.")
    ] = "percentile",
    size: SizeOption = None,
    density: DensityOption = 0.01,
    max_loss: Annotated[
        float | None, typer.Option(help="dB that a search for fewer bits may cost.")
    ] = None,
    cells: Annotated[
        int, typer.Option(help="Cells of the array: the search weighs their state so often.")
    ] = 1,
    dither: Annotated[
        int,
        typer.Option(min=0, max=8, help="Random bits of the update's rounding; 0 rounds it."),
    ] = 0,
    scales: Annotated[
        str,
        typer.Option(
            help="Weights with one power of two: all of an output, a kernel, or a weight alone."
        ),
    ] = "kernel",
    feedback: Annotated[
        bool,
        typer.Option(help="Let each weight make up for what rounding those before it lost."),
    ] = True,
    cost: Annotated[
        str,
        typer.Option(
            help="What the search lowers: bits, or luts, which count a step's clocks, too."
        ),
    ] = "bits",
    json_file: JsonOption = None,
) -> None:
    """Turn a float rule into an integer rule, without retraining.

    Shows what the formats of the hidden neurons clip of what was seen. With
    --max-loss single channels, neurons and gates lose bits one by one, those
    first that save most, until that many dB are lost on the clips.
    """
    from scotopia.model.files import rule_kind
    from scotopia.model.float_rule import KIND
    from scotopia.quantize.formats import Precision

    from .quantize import Job, run_quantization
    from .quantize_graph import quantize_graph
    from .rules import parse_rounding, rule_path

    precision = Precision(weight_bits, state_bits, hidden_bits, gate_bits, update_bits)
    if rule_kind(rule_path(rule)) == KIND:
        for option, given in (("max-loss", max_loss), ("dither", dither), ("cost", cost != "bits")):
            if given:
                raise InputError(
                    f"--{option} is for rules that `scotopia train` makes: leave it out for {rule}"
                )
        made, found = quantize_graph(
            rule, precision, parse_rounding(rounding), scales, calibrate or (), size, density
        )
        made.save(out)
        console.print(
            f"{out}: {found['weight_bits']} weight bits, {made.state_bits} state bits a cell"
        )
        write_json(json_file, found)
        return
    integer, result = run_quantization(
        Job(
            rule,
            precision,
            parse_rounding(rounding),
            method,
            density,
            calibrate or [],
            size,
            max_loss,
            cells,
            dither,
            scales,
            feedback,
            cost,
            command_line(),
        ),
        console,
    )
    integer.save(out)
    console.print(
        f"{out}: {result['weight_bits']} weight bits, {integer.state_bits} state bits a cell"
    )
    write_json(json_file, result)


@command
def import_(
    module: Annotated[
        str, typer.Argument(metavar="FILE.py:CLASS", help="A class of yours; its file is run.")
    ],
    out: Annotated[Path, Writes(), typer.Option("--out", "-o", help="Float rule file to write.")],
    weights: Annotated[
        Path | None, Reads(), typer.Option(help="Checkpoint: a state dict; nothing in it is run.")
    ] = None,
    args: Annotated[
        str, typer.Option(help="Arguments of the class, such as 'channels=16, size=64'.")
    ] = "",
    method: Annotated[str, typer.Option(help="Method that does a step.")] = "forward",
    channels: Annotated[
        int | None, typer.Option(help="Channels of the state; by default module.channels.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Axes of the state: BCHW or BHWC.")] = "BCHW",
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="Argument of the step that arrives from outside and is kept, or VALUE:FLAG with "
            "the one that is 1 while a frame has it; may be repeated."
        ),
    ] = None,
    random: Annotated[
        list[str] | None,
        typer.Option(
            help="Argument that is drawn in each step, or NAME=CHANCE for a 1 by chance, else 0."
        ),
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(help="Argument that stays the same: NAME=VALUE.")
    ] = None,
    start: Annotated[
        str,
        Reads(),
        typer.Option(
            help="Initial state: zeros; cell, one in the middle with its first three channels 0 "
            "and all others 1; or a .npy file of values (C, h, w) for the middle."
        ),
    ] = "zeros",
    steps_per_frame: Annotated[int, typer.Option(min=1, max=64, help="Steps a frame.")] = 1,
    lines: Annotated[
        int, typer.Option(min=2, max=64, help="Bent lines that a smooth function becomes.")
    ] = 8,
) -> None:
    """Turn an automaton of your own, a PyTorch module, into a float rule.

    Its step is a method that takes the state and returns the next one. It is
    taken apart by torch.export and compared with the module; what a cell
    cannot compute from its nearest neighbours is refused, with its line.
    """
    from .importing import Job, import_module

    console.print(
        import_module(
            Job(
                module,
                weights,
                args,
                method,
                channels,
                layout,
                tuple(event or ()),
                tuple(random or ()),
                tuple(constant or ()),
                start,
                steps_per_frame,
                lines,
                command_line(),
            ),
            out,
        ),
        soft_wrap=True,
    )


@command
def sweep(
    rules: Annotated[
        list[str],
        Reads(),
        typer.Argument(metavar="RULE", help="Float rules: files, or shipped names."),
    ],
    out: Annotated[
        Path,
        Writes(folder=True, files=SWEEP_FILES),
        typer.Option("--out", "-o", help="Folder to write."),
    ],
    clips: Annotated[
        list[str] | None,
        Reads(),
        typer.Option("--clip", help="Clip to score on, or folder of clips; may be repeated."),
    ] = None,
    weight_bits: Annotated[str, typer.Option(help="Bits of a weight, 2 to 16.")] = "4,6,8",
    state_bits: Annotated[str, typer.Option(help="Bits of a state channel, 2 to 16.")] = "8,10",
    update_bits: Annotated[
        int | None,
        typer.Option(help="Bits of weights whose errors add up; by default as the others."),
    ] = None,
    rounding: Annotated[str, typer.Option(help="TRN, RND or others of ap_fixed's.")] = "TRN,RND",
    seeds: Annotated[str, typer.Option(help="Seeds of which pixels are shown.")] = "0,1",
    density: DensityOption = 0.01,
    size: SizeOption = None,
    frames: Annotated[
        int | None, typer.Option(help="No more than the first frames of a clip, 21 or more.")
    ] = None,
    drift_steps: Annotated[
        int, typer.Option(help="Steps that float and integer rule run side by side, at least.")
    ] = 1000,
    calibrate: Annotated[
        list[str] | None,
        Reads(),
        typer.Option(help="Clips to find ranges with; by default four synthetic ones."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask scheduler, tcp://HOST:PORT; by default all of this machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; by default one a core.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare word lengths: PSNR, loss and cost of a rule in many precisions, and their front.

    What is done is kept in OUT: a sweep that was stopped goes on with the same
    command, and a larger one computes only what is new. Exit status 1 if all
    points are refused.
    """
    from scotopia.hdl.estimate import costs_of_array
    from scotopia.quantize.sweep import Grid

    from . import sweep as sweeping
    from .quantize import calibration_clips

    sweeping.require_extra()
    grid = Grid(
        weight_bits=sweeping.parse_numbers(weight_bits, "weight-bits"),
        state_bits=sweeping.parse_numbers(state_bits, "state-bits"),
        update_bits=update_bits,
        roundings=sweeping.parse_roundings(rounding),
        seeds=sweeping.parse_numbers(seeds, "seeds"),
        rules=sweeping.read_rules(rules),
        clips=sweeping.read_clips(clips or [], size, frames),
        calibration=calibration_clips(calibrate or [], size),
        density=density,
        drift_steps=drift_steps,
        estimate=costs_of_array,
    )
    job = sweeping.Job(grid, out, scheduler, workers)
    outcome = sweeping.run_sweep(job, progress_bar(), console)
    # Rather wider than the terminal than with figures cut short.
    Console(width=max(console.width, 120)).print(sweeping.front_table(outcome))
    for reason, count in outcome.refusals.items():
        console.print(f"{count} points refused: {reason}", soft_wrap=True, markup=False)
    write_json(json_file, sweeping.to_json(outcome))
    console.print(f"[bold]Open {out / 'index.html'}[/bold]", soft_wrap=True)
    if not outcome.summaries:
        raise typer.Exit(1)


@command
def export(
    rule: RuleArgument,
    out: Annotated[Path, Writes(), typer.Option("--out", "-o", help="File to write.")],
    to: Annotated[
        str,
        typer.Option(help="onnx, of a float rule; qonnx or c, a C99 header, of an integer rule."),
    ] = "c",
    height: Annotated[int, typer.Option(min=1, max=1024, help="Rows of cells, qonnx only.")] = 16,
    width: Annotated[int, typer.Option(min=1, max=1024, help="Columns of cells, qonnx only.")] = 16,
    name: Annotated[
        str, typer.Option(help="What all names in a C header start with.")
    ] = "scotopia",
) -> None:
    """Write one step of a rule as other tools read it.

    What a format cannot state exactly is refused.
    """
    from .export import export as export_rule

    console.print(export_rule(rule, to, out, height, width, name))


@command
def emit(
    rule: RuleArgument,
    out: Annotated[
        Path,
        Writes(folder=True, files=EMITTED_FILES),
        typer.Option("--out", "-o", help="Folder to write."),
    ],
    height: HeightOption = 16,
    width: WidthOption = 16,
    json_file: JsonOption = None,
) -> None:
    """Write the Verilog of a pixel array that runs an integer rule."""
    from scotopia.hdl.emit import emit as emit_verilog
    from scotopia.hdl.program import Program
    from scotopia.quantize.integer_rule import IntegerRule

    from .rules import rule_path

    integer = IntegerRule.load(rule_path(rule))
    with console.status("emitting"):
        manifest = emit_verilog(Program.compile(integer), height, width, out)
    console.print(
        f"{out}: {height} x {width} cells, {manifest['cycles_per_step']} cycles a step, "
        f"{manifest['planes']} bits of memory a cell"
    )
    write_json(json_file, manifest)


@command
def fpga(
    rule: RuleArgument = "retina-int",
    height: HeightOption = 16,
    width: WidthOption = 16,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW", help="Instead of height and width; several times to compare sizes."
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="ecp5-25k, ecp5-45k, ecp5-85k (the default), ice40-hx8k, ice40-up5k, "
            "gowin-gw1nr9 or gowin-gw2a18; several times to compare devices."
        ),
    ] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="estimate, without a tool; synth, to count only; route, to place and route, too."
        ),
    ] = "route",
    frequency: Annotated[
        float, typer.Option(help="Clock that the router aims for, in MHz.")
    ] = 100.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the placer.")] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds that one run of a tool may take; by default any."),
    ] = None,
    out: Annotated[
        Path | None,
        Writes(folder=True),
        typer.Option("--out", "-o", help="Folder that keeps Verilog, netlists and logs."),
    ] = None,
    json_file: JsonOption = None,
    markdown: Annotated[
        Path | None,
        Writes(),
        typer.Option(metavar="FILE", help="Also write the table as Markdown."),
    ] = None,
) -> None:
    """Synthesize, place and route an array: what it takes of an FPGA, and how fast it is.

    Needs the extra `fpga`, but for --stage estimate, which is of an ECP5 and
    takes no other option but sizes and --json. A first run compiles the tools,
    for a minute or two.

    LUT4 and block RAMs are estimated for ECP5, whatever the device. Of several
    arrays, those that do not fit are named; exit status 1 if there are any.
    """
    from . import fpga as measuring

    sizes = [measuring.parse_size(text) for text in size] if size else [(height, width)]
    sizes = list(dict.fromkeys(sizes))
    measuring.check_stage(stage)
    if stage == "estimate":
        for option, given in (("device", device), ("out", out), ("markdown", markdown)):
            if given:
                raise InputError(f"--stage estimate takes no --{option}: leave it out")
        estimates = measuring.run_estimates(rule, sizes)
        console.print(measuring.estimates_table(rule, estimates))
        if refusal := estimates[0].refusal:
            console.print(f"no cell can run it: {refusal}", soft_wrap=True, markup=False)
        write_json(json_file, measuring.estimates_json(rule, estimates))
        return
    job = measuring.Job(
        rule,
        sizes,
        list(dict.fromkeys(device or ["ecp5-85k"])),
        stage=stage,
        frequency=frequency,
        seed=seed,
        timeout=timeout,
        out=out,
    )
    with console.status("compiling the rule") as status:
        outcome = measuring.run_fpga(job, lambda name: status.update(name))
    if outcome.measured:
        # Rather wider than the terminal than with figures cut short.
        Console(width=max(console.width, 120)).print(measuring.as_table(outcome))
    for refusal in outcome.refused:
        console.print(refusal, soft_wrap=True, markup=False)
    write_json(json_file, measuring.as_json(outcome))
    if markdown is not None:
        write_atomically(markdown, measuring.as_markdown(outcome))
    if outcome.refused:
        raise typer.Exit(1)


@command
def verify(
    rule: RuleArgument = "retina-int",
    height: HeightOption = 16,
    width: WidthOption = 16,
    clip: Annotated[
        str, Reads(), typer.Option(help="Clip, whose centre is shown: a file, or davis_road.")
    ] = "davis_road",
    size: SizeOption = None,
    frames: Annotated[int, typer.Option(min=0, help="Frames to run; 0 for all.")] = 8,
    density: DensityOption = 0.01,
    seed: SeedOption = 0,
    verilog: Annotated[
        Path | None,
        Reads(("*.v", "manifest.json")),
        typer.Option(help="Check the Verilog in this folder, instead of emitting it."),
    ] = None,
    row: Annotated[
        Path | None,
        Reads(),
        typer.Option(help="Check this Verilog in place of module pixel_row, ports as emitted."),
    ] = None,
    netlist: Annotated[
        Path | None,
        Reads(),
        typer.Option(help="Check this netlist of module retina, in Verilog."),
    ] = None,
    library: Annotated[
        list[Path] | None,
        Reads(),
        typer.Option(help="Models of the netlist's cells; those of iCE40 by default."),
    ] = None,
    float_rule: Annotated[
        str | None,
        Reads(),
        typer.Option(
            "--float", help="Float rule to measure the distance from; that of equal weights."
        ),
    ] = None,
    simulator: Annotated[str, typer.Option(help="verilator or icarus.")] = "verilator",
    gates: Annotated[
        bool,
        typer.Option("--gates", help="Also the other simulator, and a netlist made by Yosys."),
    ] = False,
    faults: Annotated[
        bool, typer.Option("--faults", help="Also plant faults, each of which must be found.")
    ] = False,
    report: Annotated[
        Path | None,
        Writes(folder=True, files=PROOF_FILES),
        typer.Option(help="Folder for the proof as HTML, JSON and JUnit XML, and a waveform."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare float rule, program, Amaranth simulation and Verilog with the golden model.

    Bit for bit, but for the float rule, whose distance is measured. The ports are driven with
    stalls, resets, drops and every command, which takes a minute or two; of Verilog that is given
    in full, else on an array of 3 x 4 cells. Exit status 1 on a mismatch, and where something
    that was asked for was skipped.
    """
    from .verify import verify as run_verification

    with console.status("verify") as status:
        proof = run_verification(
            rule,
            (height, width, frames),
            clip,
            size=size,
            density=density,
            seed=seed,
            device=(verilog, row, netlist, library or []),
            float_rule=float_rule,
            simulator=simulator,
            gates=gates,
            faults=faults,
            report=report,
            # Where there is nothing to watch, a line a stage: they take minutes.
            on_stage=status.update if console.is_terminal else console.print,
        )
    console.print(proof_table(proof.stages))
    if json_file is not None:
        from .proof import stages_json

        write_json(json_file, stages_json(proof.stages))
    if report is not None:
        console.print(f"{report}: proof.html, proof.json, junit.xml")
    if not proof.passed:
        raise typer.Exit(1)


@command
def prove(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="rules, automata, stress, formal, faults; all by default."),
    ] = None,
    rules: Annotated[int, typer.Option(min=1, help="How many random rules.")] = 1000,
    faults: Annotated[
        int, typer.Option(min=1, help="Faults planted in each of the ten areas, at most.")
    ] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; as many as cores by default.")
    ] = None,
    report: Annotated[
        Path,
        Writes(folder=True, files=PROOF_FILES),
        typer.Option(help="Folder for the proof as HTML, JSON and JUnit XML."),
    ] = Path("out/proof"),
) -> None:
    """Prove the array, whatever the rule; all of it takes an hour on two cores, and 6 GB of memory.

    Random rules on golden model, Amaranth and Verilog; Life and other classical automata against
    their definitions; stress of the interfaces; properties proven by a solver (extra `formal`);
    planted faults, each of which must be caught or change nothing. Exit status 1 if anything fails,
    or is skipped for want of a tool.
    """
    from scotopia.sim.check import Verdict

    from .prove import prove as run_proof

    with console.status("prove") as status:
        proof = run_proof(
            parts or [],
            rules=rules,
            faults=faults,
            seed=seed,
            workers=workers,
            report=report,
            on_check=lambda name: status.update(name),
        )
    view = Table("part", "claim", "checked", "seconds", "")
    colours = {"passed": "[green]", "failed": "[red]", "skipped": "[yellow]"}
    for check in proof.checks:
        verdict = check.verdict.value
        view.add_row(
            check.part,
            check.name,
            f"{check.cases:,} {check.unit}",
            f"{check.seconds:.1f}",
            colours[verdict] + verdict,
        )
    console.print(view)
    for check in proof.checks:
        if check.verdict is not Verdict.PASSED:
            console.print(f"{check.verdict.value}: {check.name}: {escape(check.detail)}")
    console.print(f"{report}: proof.html, proof.json, junit.xml")
    if not proof.passed:
        raise typer.Exit(1)


@command
def board(
    out: Annotated[Path, Writes(folder=True), typer.Option("--out", "-o", help="Folder to write.")],
    rule: RuleArgument = "retina-int",
    height: HeightOption = 16,
    width: WidthOption = 16,
    name: Annotated[str, typer.Option("--board", help="ulx3s-85f.")] = "ulx3s-85f",
    baud: Annotated[
        int, typer.Option(min=1, help="Bits a second of the serial line, up to 15,625,000.")
    ] = 3_000_000,
) -> None:
    """Build the bitstream of an array for a board, with a serial line to a host.

    Needs the extras `fpga` and `board`.
    """
    from scotopia.quantize.integer_rule import IntegerRule

    from .board import build
    from .rules import rule_path

    integer = IntegerRule.load(rule_path(rule))
    with console.status(f"building for {name}"):
        bitstream = build(integer, height, width, name, out, baud)
    console.print(f"{bitstream}: {height} x {width} cells, {bitstream.stat().st_size:,} bytes")


@command
def play(
    clip: Annotated[str, Reads(), typer.Argument(help="davis_road (in the package), or any clip.")],
    port: Annotated[str, typer.Option(help="The board's serial port, as /dev/ttyUSB0.")],
    rule: Annotated[str, Reads(), typer.Option(help="The rule on the board.")] = "retina-int",
    height: HeightOption = 16,
    width: WidthOption = 16,
    frames: Annotated[int, typer.Option(min=1, help="Frames to play.")] = 100,
    size: SizeOption = None,
    density: DensityOption = 0.01,
    seed: SeedOption = 0,
    baud: Annotated[
        int, typer.Option(min=1, help="Bits a second of the serial line, up to 15,625,000.")
    ] = 3_000_000,
    compare: Annotated[
        bool, typer.Option("--compare", help="Count codes that differ from the golden model's.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Play a clip's centre through a board, and show what it sees.

    Needs the extra `board`. Exit status 1 if codes differ, with --compare.
    """
    from scotopia.model.sampling import seen_mask
    from scotopia.quantize.integer_rule import IntegerRule
    from scotopia.sim.stimulus import central_crop

    from . import board as boards
    from .clips import read_clip
    from .rules import rule_path

    boards.check_baud(baud)
    integer = IntegerRule.load(rule_path(rule))
    source = read_clip(clip, size, (height, width))
    crop = central_crop(source.frames, source.name, height, width, frames)
    mask = seen_mask(source.name, crop.shape, density, seed, integer.input_words)
    played = boards.play(integer, crop, mask, boards.open_port(port, baud), compare=compare)
    done = boards.show(played, console.print, live=console.is_terminal)
    psnr, wrong = [frame.psnr for frame in done], [frame.wrong for frame in done]
    write_json(json_file, {"psnr": psnr, "wrong": wrong})
    if any(wrong):
        raise typer.Exit(1)


@command
def inspect(
    rule: RuleArgument,
    clip: Annotated[
        str | None,
        Reads(),
        typer.Option(
            help="Any clip; by default davis_road, which is in the package. None for a rule that "
            "takes no events."
        ),
    ] = None,
    density: DensityOption = 0.01,
    seed: SeedOption = 0,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Only the clip's first frames, 50 or more; of a rule without events, 100 by "
            "default."
        ),
    ] = None,
    size: SizeOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Column and row of the sample that is changed, or of the cell that is erased; by "
            "default nearest the centre.",
        ),
    ] = None,
    out: Annotated[Path, Writes(), typer.Option("--out", "-o", help="Page to write.")] = Path(
        "out/inspect.html"
    ),
    json_file: JsonOption = None,
) -> None:
    """Look inside a rule: its channels over time, how far a change is heard, how damage heals.

    A rule that takes no events runs by itself, from its first state on SIZE x SIZE cells, 64 by
    default.
    """
    import numpy as np

    from scotopia.model.sampling import seen_mask
    from scotopia.quantize.integer_rule import IntegerRule

    from .clips import read_clip
    from .evaluate import by_kind, cost
    from .growth import FRAMES, SIDE
    from .inspect import inspect as run_inspection
    from .inspect import parse_pixel
    from .inspect_page import figures_of, render_page
    from .rules import SHIPPED

    loaded = load_rule(rule)
    (subject,) = by_kind([loaded]).values()
    pixel = parse_pixel(at) if at is not None else None
    name = None
    if subject.events:
        shown = read_clip(clip or "davis_road", size)
        if frames is not None and not 1 <= frames <= len(shown.frames):
            raise InputError(
                f"--frames {frames} is not from 1 to the {len(shown.frames)} frames of "
                f"{shown.name}: give fewer, or leave it out"
            )
        name, video = shown.name, shown.frames[:frames]
        mask = seen_mask(name, video.shape, density, seed, subject.graph.inputs)
    else:
        if clip is not None:
            raise InputError(f"rule {rule} takes no events, so no clip: leave out --clip")
        side, count = size or SIDE, FRAMES if frames is None else frames
        video = np.zeros((max(count, 0), side, side), np.float32)
        mask = np.zeros(video.shape, bool)
    with console.status("inspect") as status:
        found = run_inspection(
            subject, video, mask, pixel, seed, on_stage=lambda stage: status.update(stage)
        )
        status.update("page")
        title = rule if rule in SHIPPED else Path(rule).stem
        kind = "integer rule" if isinstance(subject, IntegerRule) else "float rule"
        share = density if subject.events else None
        figures = figures_of(found, title, kind, cost(loaded), name, share, seed)
        page = render_page(found, figures)
    write_atomically(out, page)
    write_json(json_file, figures)
    sample = figures["sample"]
    psnr = f"PSNR {figures['psnr']:.2f} dB; one sample" if subject.events else "one cell"
    console.print(
        f"{len(video)} frames, {psnr}'s effect peaks with a "
        f"radius of {sample['peak_radius_pixels']:.1f} pixels; "
        f"{sample['light_cone']['violations']} light cone violations in "
        f"{sample['light_cone']['steps_checked']} steps"
    )
    console.print(f"[bold]Open {out}[/bold]")


def proof_table(stages: list[Any]) -> Table:
    """Stages of a verification as a table."""
    view = Table("stage", "compared", "cell updates", "mismatches", "seconds", "")
    for stage in stages:
        view.add_row(
            stage.name,
            stage.compared + (f"\n{stage.detail}" if stage.detail else ""),
            f"{stage.cell_updates:,}",
            f"{stage.mismatches:,}",
            f"{stage.seconds:.1f}",
            stage_verdict(stage),
        )
    return view


def stage_verdict(stage: Any) -> str:
    """Verdict on a stage of a verification, in a word."""
    if stage.skipped or stage.measured:
        return "[yellow]skipped" if stage.skipped else "measured"
    if stage.expect_mismatch:
        return "[green]found" if stage.passed else "[red]MISSED"
    return "[green]equal" if stage.passed else "[red]DIFFERS"


def load_rule(name: str) -> Any:
    """Load a rule of any kind: `Rule`, `FloatRule` or `IntegerRule`."""
    from scotopia.model.float_rule import KIND, FloatRule
    from scotopia.model.rule import Rule
    from scotopia.quantize.integer_rule import KIND as INTEGER
    from scotopia.quantize.integer_rule import IntegerRule

    from .rules import rule_path

    path = rule_path(name)
    kinds: dict[str, Any] = {KIND: FloatRule, INTEGER: IntegerRule}
    return kinds.get(rule_kind(path), Rule).load(path)


def command_line() -> str:
    """How the user put it."""
    return shlex.join(["scotopia", *sys.argv[1:]])


def training_of(rule: Any) -> dict[str, Any]:
    """How a rule of any kind was trained."""
    from scotopia.model.rule import Rule

    record: dict[str, Any] = rule.training_record if isinstance(rule, Rule) else rule.training
    return record


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result for machines, whole or not at all."""
    if path is not None:
        write_atomically(path, json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    with warnings.catch_warnings(), ended_by_signals():
        warnings.showwarning = lambda message, *_where, **_how: tell(str(message))
        status = run_command()
    raise SystemExit(status)


def run_command() -> object:
    """Run the command that the arguments name, and return its exit status."""
    try:
        # Without a command it shows its help; else what it refuses is ours to tell, in one line.
        return app(standalone_mode=len(sys.argv) == 1)
    except InputError as error:
        fail(str(error))
    except TyperException as error:  # options that make no sense
        context = getattr(error, "ctx", None)
        command = "scotopia" if context is None else context.command_path
        fail(f"{error.format_message().rstrip('.')}: see {command} --help")
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some space, or choose another folder",
            errno.EDQUOT: "free some space, or choose another folder",
            errno.EFBIG: "raise the limit on file sizes, or choose another folder",
            errno.EISDIR: "name a file",
            errno.ENOTDIR: "choose a folder",
        }.get(error.errno or 0, "choose a path that exists and that you may use")
        # What a command writes has its name: see `model.files.naming`.
        name = error.filename or f"standard output, or a file in {tempfile.gettempdir()}"
        fail(f"{name}: {error.strerror}: {remedy}")


def fail(message: str) -> NoReturn:
    """Print one line and exit with status 2."""
    tell(message)
    raise SystemExit(2)


def tell(message: str) -> None:
    """Print one line on standard error."""
    print(f"scotopia: {' '.join(message.split())}", file=sys.stderr)
