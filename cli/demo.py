"""The whole path once: clip, 1 % of its pixels, rule, integers, Verilog, proof, report."""

from pathlib import Path

import numpy as np
from rich.progress import Progress

from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.model import running
from scotopia.model.files import write_atomically
from scotopia.model.rule import Rule
from scotopia.model.sampling import seen_mask
from scotopia.model.score import check_scorable, psnr_curve
from scotopia.model.scotopic.float_graph import as_float_rule
from scotopia.model.scotopic.titles import channel_titles
from scotopia.quantize import task as integer_task
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.stimulus import central_crop
from scotopia.sim.verify import PORTS_SHAPE, Extent, verify

from .clips import read_clip
from .evaluate import Scores, Shown, Video, cost, methods
from .main import proof_table, write_json
from .proof import stages_json
from .report import DemoResult, write_report
from .rules import rule_path


def run_demo(
    out: Path,
    clip_name: str,
    size: int | None,
    density: float,
    seed: int,
    extent: tuple[int, int, int],
    progress: Progress,
) -> bool:
    """Write the demo's folder and return whether every stage of the proof passed.

    Parameters
    ----------
    extent
        Height and width of the array in Verilog, and frames that it runs.
    """
    rule = Rule.load(rule_path("retina"))
    integer = IntegerRule.load(rule_path("retina-int"))
    shown = Shown.by_protocol(read_clip(clip_name, size, extent[:2]), density, seed)
    frames, mask = shown.clip.frames, shown.mask
    height, width, count = extent
    # What is bad is refused now, not after minutes.
    check_scorable(shown.clip)
    crop = central_crop(frames, shown.clip.name, height, width, count)
    for seen in (frames, crop):
        seen_mask(shown.clip.name, seen.shape, density, seed, integer.graph.inputs)

    classical = methods([])
    task = progress.add_task("baselines", total=len(classical))
    estimates: dict[str, Video] = {}
    scores: dict[str, Scores] = {}
    for name, estimate in classical.items():
        progress.update(task, description=name)
        estimates[name] = estimate(shown)
        scores[name] = shown.score(estimates[name])
        progress.advance(task)
    progress.update(task, description="baselines")

    task = progress.add_task("float rule", total=len(frames))
    predictions = []
    for state in running.run(as_float_rule(rule), frames, mask):
        predictions.append(running.prediction(state))
        progress.advance(task)
    estimates["nca"] = np.clip(predictions, 0, 1).astype(np.float32)

    task = progress.add_task("integer rule", total=len(frames))
    states = []
    for codes in integer_task.run(integer, frames, mask):
        states.append(codes)
        progress.advance(task)
    estimates["nca-int"] = np.stack([integer.pixels(codes[0]) for codes in states])

    task = progress.add_task("Verilog", total=1)
    program = Program.compile(integer)
    manifest = emit(program, height, width, out / "verilog")
    progress.advance(task)

    task = progress.add_task("proof", total=None)  # as many stages as there are

    def on_stage(name: str) -> None:
        progress.update(task, description=name)
        progress.advance(task)

    stages = verify(
        integer,
        frames,
        Extent(height, width, count),
        density=density,
        seed=seed,
        clip_name=shown.clip.name,
        verilog=out / "verilog",
        faults=True,
        ports_shape=PORTS_SHAPE,  # those of the whole array would take minutes
        on_stage=on_stage,
    )
    progress.update(task, description="proof", total=len(stages))
    write_json(out / "verify.json", stages_json(stages))

    task = progress.add_task("report", total=1)
    for name in ("retina", "retina-int"):  # the page's files
        path = rule_path(name)
        write_atomically(out / path.name, path.read_bytes())
    for name in ("nca", "nca-int"):
        scores[name] = shown.score(estimates[name])
    figures = cost(integer)
    result = DemoResult(
        clip_name=shown.clip.name,
        clip=frames,
        mask=mask,
        density=density,
        seed=seed,
        estimates={name: estimates[name] for name in ("normalized-convolution", "nca", "nca-int")},
        scores=scores,
        curves={name: psnr_curve(frames, estimate) for name, estimate in estimates.items()},
        channels=np.stack([codes.astype(np.int16) for codes in states]),
        channel_names=channel_titles(rule),
        cost={
            "Parameters": figures["parameters"],
            "Multiply-accumulates per cell and step": figures["macs_per_cell_and_step"],
            "Steps per frame": figures["steps_per_frame"],
            "State bits per cell": figures["state_bits_per_cell"],
            "Clock cycles per step": manifest["cycles_per_step"],
            "Frames a second at an assumed 60 MHz, input and output apart": round(
                60e6 / (manifest["cycles_per_step"] * figures["steps_per_frame"])
            ),
            "Memory bits per cell": manifest["planes"],
            "Instructions of the program": manifest["instructions"],
        },
        stages=stages,
        files=[
            ("report.html", "this page"),
            ("side_by_side.mp4", "the five panels as a video"),
            ("side_by_side.png", "one frame of them"),
            ("verilog/retina.v", f"top module of the {height} x {width} array"),
            ("verilog/pixel_row.v", "a row of pixel cells and their memory"),
            ("verilog/sequencer.v", "sequencer, with the program in its memory"),
            ("verilog/program.txt", "the program as a listing"),
            ("verilog/manifest.json", "what the Verilog is, for machines"),
            ("retina.safetensors", "float rule"),
            ("retina-int.safetensors", "integer rule"),
            ("verify.json", "the proof, for machines"),
        ],
        trained_on=rule.training_record.get("clips", []),
        synthetic_clips=rule.training_record.get("synthetic_clips", 0),
    )
    write_report(result, out)
    progress.advance(task)
    progress.console.print(proof_table(stages))
    return all(stage.passed for stage in stages)
