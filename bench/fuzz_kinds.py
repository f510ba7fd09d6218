"""What users give Scotopia to read: for each kind valid files, damage, the reader, its promises."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from mutations import (
    damage,
    dump_json,
    mutate_json,
    mutate_npy,
    mutate_npz,
    mutate_png,
    mutate_safetensors,
    sort_header,
    zip_of,
)
from PIL import Image

from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.checkpoint import Checkpoint
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.files import read_rule_file
from scotopia.model.float_rule import FloatRule
from scotopia.model.interpret import Interpreter
from scotopia.model.options import TrainOptions
from scotopia.model.rule import Rule
from scotopia.model.scotopic.training import new_trainer
from scotopia.model.train import Trainer
from scotopia.model.video import MAX_PIXELS, Clip, load_clip
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.qonnx_export import export_qonnx, import_qonnx
from scotopia.sim.random_rules import any_rule


class Fault(Exception):
    """What a reader accepted is not what it promises."""


@dataclass(frozen=True)
class Kind:
    """A reader, and how to make files for it.

    Attributes
    ----------
    share
        Of all inputs.
    suffixes
        Of the files; an empty one stands for a folder with the image in it.
    seeds
        Makes valid files, as small as they come.
    mutate
        Damages the structure of a file; its bytes are damaged in any case.
    read
        Reads a path as a user would.
    check
        Uses what was read; raises `Fault` if it breaks a promise.
    package
        That must be installed.
    prints
        Whether a library prints on standard error and cannot be silenced, as libtiff does.
    """

    share: float
    suffixes: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes] | None
    read: Callable[[Path], Any]
    check: Callable[[Any], object]
    package: str = "numpy"
    prints: bool = False

    def available(self) -> bool:
        """Whether the package is installed."""
        return importlib.util.find_spec(self.package) is not None


# Valid files, made by the project's own writers where it has one.


def _saved(save: Callable[[Path], object], suffix: str = ".safetensors") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        save(path)
        content = path.read_bytes()
    return sort_header(content) if suffix == ".safetensors" else content


def _float_rule(seed: int, **fields: Any) -> Rule:
    rng = np.random.default_rng(seed)
    small = {"channels": 2, "hidden": 2, "inputs": INPUTS, "steps_per_frame": 1, "trace_bits": 3}
    rule = Rule(RuleConfig(**(small | fields)))
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.5, tuple(parameter.shape))))
    rule.training_record = {"clips": ["a", "b"], "command": "scotopia train", "seconds": 1.5}
    return rule


def _float_rules() -> list[Rule]:
    return [
        _float_rule(0),
        _float_rule(1, kind="residual", border="wrap", inputs=("trace",), fire_rate=0.5),
        _float_rule(2, channels=5, block=2, perception="depthwise"),
    ]


def _integer_rules() -> list[IntegerRule]:
    gated, residual = (_quantized(rule) for rule in _float_rules()[:2])
    layered = [gated, dataclasses.replace(gated, dither=3).with_proof(), residual.with_proof()]
    return [*layered, *_graph_rules(4)]


def _graph_rules(count: int) -> list[GraphRule]:
    """Random graphs, of those that can be proven."""
    found: list[GraphRule] = []
    for seed in itertools.count():
        with contextlib.suppress(InputError):
            found.append(any_rule(seed).with_proof())
        if len(found) == count:
            return found


def _float_graphs() -> list[FloatRule]:
    build = Builder()
    x = build.channels({"x": None, "y": None})
    light, dark = build.inputs({"light": None, "dark": None})
    seen = build.linear(x, RNG.normal(size=(2, 2, 9)), RNG.normal(size=2), "reflect")
    chosen = build.where(build.random(3) < 0.5, build.window(seen), x * light)
    after = (chosen - dark).maximum(-1).minimum(1)
    graph = build.graph({"x": after[0], "y": after[1]})
    events = Event("light", "dark"), Event("light"), Event("dark")
    first = Initial.cell(np.array([1.0, 0.5]))
    return [
        FloatRule(graph, 2, events[:1]),
        FloatRule(graph, 1, events[1:], first, {"clips": ["a"]}),
    ]


def _quantized(rule: Rule) -> LayeredRule:
    hidden = [unsigned_format(2.0, 8)] * rule.config.hidden
    return Formats.choose(rule, hidden, Precision(weight=6)).integer_rule(rule)


RNG = np.random.default_rng(1)

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 8, 10), dtype=np.uint8)


def _arrays() -> list[bytes]:
    def npy(frames: np.ndarray) -> bytes:
        file = BytesIO()
        np.save(file, frames)
        return file.getvalue()

    unit = FRAMES / 255
    kinds = (FRAMES, unit, unit.astype(np.float16), unit.astype(np.float32).T)
    return [npy(frames) for frames in kinds]


def _archives() -> list[bytes]:
    return [zip_of({"frames.npy": content}) for content in _arrays()] + _bombs()


@functools.cache
def _bombs() -> list[bytes]:
    """Small archives of many zeros, whose headers are right."""
    header = BytesIO()
    shape = (2048, 512, 256)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    zeros = header.getvalue() + bytes(int(np.prod(shape)))
    return [zip_of({"frames.npy": zeros}, compression) for compression in (8, 12)]


def _mutate_archive(rng: random.Random, content: bytes) -> bytes:
    return mutate_npz(rng, rng.choice(_arrays()))


def _images() -> list[bytes]:
    gray = Image.fromarray(np.tile(FRAMES[0], (2, 2)))
    found = []
    for format, mode in (
        *(("PNG", mode) for mode in ("L", "RGB", "P", "LA", "1", "RGBA")),
        *(("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "L")),
        *(("BMP", "RGB"), ("PPM", "L"), ("PPM", "RGB"), ("TIFF", "L"), ("TIFF", "RGB")),
        *(("WEBP", "RGB"), ("WEBP", "RGBA")),
    ):
        file = BytesIO()
        gray.convert(mode).save(file, format)
        found.append(file.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        file = BytesIO()
        gray.save(file, "TIFF", compression=compression)
        found.append(file.getvalue())
    file = BytesIO()
    gray.save(file, "PNG", save_all=True, append_images=[gray, gray])
    return [*found, file.getvalue()]


def _mutate_image(rng: random.Random, content: bytes) -> bytes:
    if content.startswith(b"\x89PNG"):
        return mutate_png(rng, content)
    return damage(rng, content, content)


def _videos() -> list[bytes]:
    found = []
    for codec, pix_fmt, suffix in (
        *(("ffv1", "gray", ".mkv"), ("mjpeg", "yuvj420p", ".avi"), ("mpeg4", "yuv420p", ".mp4")),
        *(("libx264", "yuv420p", ".mp4"), ("libx264", "yuv420p", ".ts")),
        *(("libvpx", "yuv420p", ".webm"), ("libvpx-vp9", "yuv420p", ".webm")),
        *(("mpeg2video", "yuv420p", ".mpg"), ("flv1", "yuv420p", ".flv"), ("gif", "gray", ".gif")),
        *(("rawvideo", "gray", ".avi"), ("png", "gray", ".mov"), ("wmv2", "yuv420p", ".wmv")),
        *(("qtrle", "rgb24", ".mov"), ("rawvideo", "yuv420p", ".y4m"), ("apng", "gray", ".apng")),
    ):
        codec = {".y4m": "wrapped_avframe"}.get(suffix, codec)
        found.append(_saved(functools.partial(_encode, codec=codec, pix_fmt=pix_fmt), suffix))
    return [*found, _saved(_encode_sound, ".wav")]


def _encode(path: Path, codec: str, pix_fmt: str) -> None:
    frames = np.tile(FRAMES, (1, 4, 4))
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], pix_fmt
        stream.thread_count = 1
        for number, gray in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(gray, format="gray").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _encode_sound(path: Path) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))


_NOISE = Clip("noise", np.random.default_rng(0).random((4, 8, 8), np.float32))


@functools.cache
def _trainer() -> Trainer[Rule]:
    torch.manual_seed(0)
    config = RuleConfig(channels=2, hidden=2, inputs=("sample",), steps_per_frame=1)
    options = TrainOptions(iterations=3, batch=1, crop=4, chunk=1, densities=(0.5, 0.5, 0.5))
    return new_trainer(Rule(config), [_NOISE], options)


def _checkpoints() -> list[bytes]:
    trainer, found = _trainer(), []
    for _ in range(2):
        found.append(_saved(trainer.checkpoint(seconds=1.5, psnr=None, start=None).write))
        trainer.step()
    return found


def _qonnx_models() -> list[bytes]:
    rules = [_quantized(_float_rule(0)), *_graph_rules(2)]
    return [_saved(functools.partial(export_qonnx, rule), ".onnx") for rule in rules]


def _mutate_onnx(rng: random.Random, content: bytes) -> bytes:
    """Edit the rule, the description or a tensor of a model."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    entries = {entry.key: entry for entry in model.metadata_props}
    match rng.randrange(4):
        case 0 | 1:
            entry = entries[rng.choice(("rule", "rule", "description"))]
            with contextlib.suppress(UnicodeEncodeError):
                entry.value = dump_json(mutate_json(rng, json.loads(entry.value)))
        case 2:
            tensor = rng.choice(list(model.graph.initializer))
            tensor.raw_data = damage(rng, tensor.raw_data, content)
        case _:
            tensor = rng.choice(list(model.graph.initializer))
            del tensor.dims[:]
            tensor.dims.extend(rng.choice(([], [0], [-1], [1] * 70, [2**62], [2**32, 2**32], [2])))
    return model.SerializeToString(deterministic=True)


# Readers, and what they promise.


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Fault(what)


def _check_config(config: RuleConfig) -> None:
    for name, low, high in (
        *(("block", 1, 4), ("channels", 1, 32), ("hidden", 1, 128)),
        *(("steps_per_frame", 1, 64), ("trace_bits", 1, 16)),
    ):
        value = getattr(config, name)
        _require(type(value) is int and low <= value <= high, f"{name} is {value!r}")
    _require(
        type(config.fire_rate) in (int, float) and 0 < config.fire_rate <= 1,
        f"fire_rate is {config.fire_rate!r}",
    )


def _check_float_rule(rule: Rule) -> None:
    _check_config(rule.config)
    for name, tensor in rule.state_dict().items():
        _require(bool(tensor.isfinite().all()), f"{name} is not finite")
    clips = rule.training_record.get("clips", [])
    _require(
        isinstance(clips, list) and all(isinstance(clip, str) for clip in clips),
        f"clips of the training record are {str(clips)[:100]}",
    )
    with torch.no_grad():
        state = rule.initial_state(1, 3, 4)
        shown = torch.ones(1, rule.config.pixels, 3, 4)
        for _ in range(2):
            state = rule(state, 0.5 * shown, shown)
    _require(state.shape == (1, len(rule.config.channel_names), 3, 4), f"state is {state.shape}")
    finite = state[state.isfinite()]  # weights near the largest float give more than a float holds
    _require(bool((finite.abs() <= 1).all()), "the state leaves [-1, 1]")
    _check_saved(rule, "float rule")


def _check_integer_rule(rule: IntegerRule) -> None:
    if isinstance(rule, LayeredRule):
        _check_config(rule.config)
    for format in rule.graph.formats.values():
        bits = (format.int_bits, format.frac_bits)
        _require(all(type(n) is int for n in bits) and type(format.signed) is bool, f"{format!r}")
    rng = np.random.default_rng(0)
    planes, shape = rule.noise_planes, (3, 4)
    lows, highs = zip(*((f.lowest, f.highest) for f in rule.channel_formats), strict=True)
    state = np.stack([rng.choice(ends, shape) for ends in zip(lows, highs, strict=True)])
    inputs = {
        name: rng.choice((format.lowest, format.highest), shape)
        for name, format in rule.input_words.items()
    }
    noise = rng.integers(0, 2, (planes, *shape)) if planes else None
    state = rule.step(state, inputs, noise)
    for format, codes in zip(rule.channel_formats, state, strict=True):
        inside = format.lowest <= codes.min() and codes.max() <= format.highest
        _require(inside, f"a state leaves {format}")
    _check_saved(rule, "integer rule")


def _check_float_graph(rule: FloatRule) -> None:
    with torch.no_grad():
        run, state = Interpreter(rule.graph), torch.from_numpy(rule.initial.state(3, 4))[None]
        inputs = {name: torch.ones(1, 3, 4).double() for name in rule.graph.inputs}
        after = run(state, inputs, run.draw(state) if run.random else None)
    _require(after.shape == state.shape, f"state is {tuple(after.shape)}")
    _check_saved(rule, "float graph")


def _check_saved(rule: Rule | FloatRule | IntegerRule, kind: str) -> None:
    """Require that a rule is read again as it was."""
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "rule.safetensors", Path(folder) / "again.safetensors"
        rule.save(path)
        type(rule).load(path).save(again)
        first, second = read_rule_file(path, kind), read_rule_file(again, kind)
    _require(json.dumps(first[0]) == json.dumps(second[0]), "the rule is not what was saved")
    for name, tensor in first[1].items():
        _require(np.array_equal(tensor, second[1][name]), f"{name} is not what was saved")


def _check_clip(clip: Clip) -> None:
    frames = clip.frames
    _require(frames.ndim == 3 and frames.dtype == np.float32, f"{frames.dtype}, {frames.shape}")
    _require(0 < frames.size <= MAX_PIXELS, f"{frames.size} pixels")
    _require(bool(((frames >= 0) & (frames <= 1)).all()), "a pixel is outside [0, 1]")


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    # No step of training: PyTorch's gradients do not run in a forked process.
    path = Path("a.checkpoint")
    _trainer().resume(checkpoint, path)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder) / path)
        again = Checkpoint.read(Path(folder) / path)
    for name, value in vars(checkpoint).items():
        if name != "tensors":
            texts = {
                json.dumps(found, default=vars, sort_keys=True)
                for found in (value, getattr(again, name))
            }
            _require(len(texts) == 1, f"{name} is not what was written")
    for name, tensor in checkpoint.tensors.items():
        _require(np.array_equal(tensor, again.tensors[name]), f"{name} is not what was written")


KINDS = {
    "rule": Kind(
        0.13,
        (".safetensors",),
        lambda: [_saved(rule.save) for rule in _float_rules()],
        mutate_safetensors,
        Rule.load,
        _check_float_rule,
    ),
    "integer": Kind(
        0.22,
        (".safetensors",),
        lambda: [_saved(rule.save) for rule in _integer_rules()],
        mutate_safetensors,
        IntegerRule.load,
        _check_integer_rule,
    ),
    "graph": Kind(
        0.05,
        (".safetensors",),
        lambda: [_saved(rule.save) for rule in _float_graphs()],
        mutate_safetensors,
        FloatRule.load,
        _check_float_graph,
    ),
    "checkpoint": Kind(
        0.15,
        (".checkpoint",),
        _checkpoints,
        mutate_safetensors,
        Checkpoint.read,
        _check_checkpoint,
    ),
    "npy": Kind(0.12, (".npy",), _arrays, mutate_npy, lambda p: load_clip(p, None), _check_clip),
    "npz": Kind(
        0.12, (".npz",), _archives, _mutate_archive, lambda p: load_clip(p, None), _check_clip
    ),
    "image": Kind(
        0.09, ("",), _images, _mutate_image, lambda p: load_clip(p, None), _check_clip, prints=True
    ),
    "video": Kind(
        0.07,
        (".mp4", ".avi", ".mkv", ".txt"),
        _videos,
        None,
        lambda p: load_clip(p, None),
        _check_clip,
    ),
    "qonnx": Kind(
        0.05, (".onnx",), _qonnx_models, _mutate_onnx, import_qonnx, _check_integer_rule, "onnx"
    ),
}
