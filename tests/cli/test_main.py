import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scotopia.cli.outputs import EMITTED_FILES
from scotopia.cli.rules import SHIPPED, rule_path
from scotopia.model.files import write_atomically, write_rule_file

Run = Callable[..., tuple[int, str, str]]

COMMAND = Path(sys.executable).parent / "scotopia"


def test_help_names_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "train", "evaluate", "quantize", "sweep", "export", "emit", "verify"):
        assert command in out


def test_the_installed_command_runs_on_its_own() -> None:
    done = subprocess.run([COMMAND, "emit", "--help"], capture_output=True, text=True, check=True)
    assert "--height" in done.stdout


def test_a_rule_goes_from_training_to_verilog(run: Run, clip: Path, tmp_path: Path) -> None:
    rule, integer = tmp_path / "rule.safetensors", tmp_path / "integer.safetensors"
    shape = ("--channels", 2, "--hidden", 3, "--steps-per-frame", 1, "--trace-bits", 4)
    effort = ("--synthetic", 0, "--iterations", 2, "--batch", 2, "--crop", 16)
    assert run("train", clip, "--out", rule, *shape, *effort)[0] == 0
    assert run("quantize", rule, "--out", integer, "--calibrate", clip)[0] == 0
    assert run("emit", integer, "--out", tmp_path / "v", "--height", 3, "--width", 5)[0] == 0
    assert {path.name for path in (tmp_path / "v").iterdir()} == set(EMITTED_FILES)
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert (manifest["height"], manifest["width"]) == (3, 5)
    assert manifest["channels"] == ["x0", "x1", "sample", "trace"]


def test_shipped_rules_are_small_and_agree_on_their_training() -> None:
    from scotopia.model.presets import find_preset
    from scotopia.model.rule import Rule
    from scotopia.model.start import has_verdict
    from scotopia.quantize.integer_rule import IntegerRule

    rule = Rule.load(rule_path("retina"))
    assert rule.config == find_preset("retina").config
    assert has_verdict(rule)
    assert rule.parameter_count <= 2500
    assert "davis_road" not in rule.training_record["clips"]
    before = Rule.load(rule_path("retina-2266"))
    for name, source in (("retina-int", rule), ("retina-shift", before)):
        integer = IntegerRule.load(rule_path(name))
        assert integer.config == source.config
        assert integer.training["clips"] == source.training_record["clips"]
        assert integer.proof is not None
    assert "2-bit weight" in integer.training["start"]  # retina-shift is trained on the grid
    assert all(Path(str(path)).stat().st_size < 100_000 for path in SHIPPED.values())


def test_weights_of_retina_shift_are_powers_of_two() -> None:
    from scotopia.quantize.integer_rule import IntegerRule

    rule = IntegerRule.load(rule_path("retina-shift"))
    for layer in (rule.perceive, rule.update):
        size = np.abs(layer.weight)
        assert not (size & (size - 1)).any()


def test_shipped_rule_beats_last_seen_by_5_db_and_the_oracle_on_a_clip_it_never_saw(
    run: Run, tmp_path: Path
) -> None:
    target = tmp_path / "scores.json"
    run("evaluate", "davis_road", "--json", target)
    psnr = {name: s["psnr"] for name, s in json.loads(target.read_text())["mean"].items()}
    for rule in ("nca", "nca-int"):
        assert psnr[rule] > psnr["last-seen"] + 5
        assert psnr[rule] > psnr["normalized-convolution-oracle"]


def truncated(path: Path) -> None:
    path.write_bytes(rule_path("retina-int").read_bytes()[:-1])


def of_another_version(path: Path) -> None:
    write_rule_file(path, "integer rule", {}, {})
    path.write_bytes(path.read_bytes().replace(b'"version":"2"', b'"version":"7"'))


def of_something_else(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (
            truncated,
            "rule {path} cannot be read (Error while deserializing header: incomplete metadata, "
            "file not fully covered): it is truncated or no rule file; write it again",
        ),
        (
            of_another_version,
            "rule {path} has version 7, this Scotopia reads version 2: "
            "write it again with this Scotopia",
        ),
        (
            of_something_else,
            "{path} is a safetensors file but no Scotopia rule: "
            "give one written by `scotopia train` or `scotopia quantize`",
        ),
        (
            lambda path: None,
            "rule {path} does not exist: give the path of a .safetensors rule file",
        ),
    ],
)
@pytest.mark.parametrize("command", ["emit", "verify", "quantize"])
def test_a_bad_rule_is_one_line(
    run: Run, tmp_path: Path, command: str, write: Callable[[Path], None], sentence: str
) -> None:
    rule = tmp_path / "rule.safetensors"
    write(rule)
    out = () if command == "verify" else ("--out", tmp_path / "out")
    status, _, err = run(command, rule, *out)
    assert (status, err) == (2, f"scotopia: {sentence.format(path=rule)}\n")
    assert not (tmp_path / "out").exists()


def test_a_float_rule_where_integers_are_needed_names_the_command(run: Run) -> None:
    path = rule_path("retina")
    assert run("verify", "retina") == (
        2,
        "",
        f"scotopia: {path} is a Scotopia float rule, not a Scotopia integer rule: "
        "make one with `scotopia quantize`\n",
    )


@pytest.mark.parametrize("density", ["0", "1.5", "-0.1", "nan"])
@pytest.mark.parametrize("command", [("evaluate", "davis_road"), ("verify",), ("demo",)])
def test_a_density_outside_0_to_1_is_one_line(
    run: Run, tmp_path: Path, command: tuple[str, ...], density: str
) -> None:
    out = ("--out", tmp_path / "out") if command == ("demo",) else ()
    status, _, err = run(*command, *out, "--density", density)
    assert status == 2
    assert err == (
        f"scotopia: density {float(density):g} is not above 0 and up to 1: give 0.01 for 1 %\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("emit", "retina-int", "--height", "0"),
            "Invalid value for '--height': Input should be greater than or equal to 1: see "
            "scotopia emit --help",
        ),
        (
            ("quantize", "retina", "--weight-bits", "1"),
            "weight bits 1 are outside 2 to 16: choose 8, for instance",
        ),
        (
            ("quantize", "retina", "--rounding", "UP"),
            "rounding 'UP' is unknown: choose one of TRN, TRN_ZERO, RND, RND_ZERO, RND_INF, "
            "RND_MIN_INF, RND_CONV",
        ),
        (
            ("train", "--synthetic", "0"),
            "there is nothing to train on: name a clip, or --synthetic 64",
        ),
        (
            ("train", "--channels", "0"),
            "channels 0 is outside 1 to 32: choose one inside",
        ),
        (
            ("train", "--learning-rate", "nan"),
            "--learning-rate nan is no number up to 2147483647: give a smaller one",
        ),
    ],
)
def test_a_bad_option_is_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == (2, "", f"scotopia: {sentence}\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("emit", "retina-int"), "Missing option '--out' / '-o': see scotopia emit --help"),
        (("evaluate", "x", "--nope"), "No such option: --nope: see scotopia evaluate --help"),
        (("nonsense",), "No such command 'nonsense': see scotopia --help"),
    ],
)
def test_a_misused_command_is_one_line(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    assert run(*arguments) == (2, "", f"scotopia: {sentence}\n")


def test_a_command_alone_shows_its_help(run: Run) -> None:
    status, out, _ = run()
    assert status == 2 and "verify" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--frames", "119"),
            "clip davis_road has 118 frames, 119 were asked for: choose --frames from 1 to 118",
        ),
        (("--simulator", "magic"), "simulator 'magic' is unknown: choose verilator or icarus"),
        (
            ("--verilog", "nowhere"),
            "nowhere/manifest.json cannot be read (FileNotFoundError): "
            "give a folder written by `scotopia emit`",
        ),
    ],
)
def test_a_bad_verification_is_one_line(
    run: Run, arguments: tuple[str, ...], sentence: str
) -> None:
    status, _, err = run("verify", "--height", 2, "--width", 2, "--frames", 1, *arguments)
    assert (status, err) == (2, f"scotopia: {sentence}\n")


def test_a_clip_smaller_than_the_array_is_one_line(run: Run) -> None:
    status, _, err = run("verify", "--height", 200, "--width", 150)
    assert status == 2
    assert err == (
        "scotopia: clip davis_road has 128 x 128 pixels, the array 150 x 200 cells: "
        "choose a larger clip or a smaller array\n"
    )


def test_a_clip_too_short_to_score_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path
) -> None:
    short, out = tmp_path / "short.npy", tmp_path / "out"
    np.save(short, np.zeros((20, 128, 128), np.uint8))
    status, _, err = run("demo", "--clip", short, "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert "20 frames" in err
    assert not out.exists()


def test_a_missing_compiler_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = run("verify", "--height", 2, "--width", 2, "--frames", 8)
    assert (status, err) == (
        2,
        "scotopia: c++ is not on the path: "
        "Verilator needs a C++ compiler, make and perl; install them\n",
    )


def test_a_full_disk_leaves_nothing_half_written(
    run: Run,
    largest_file: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    out = tmp_path / "verilog"
    run("emit", "retina-int", "--out", out)
    earlier = (out / "sequencer.v").read_text()

    def fill_up(path: Path, text: str) -> None:
        with largest_file(100_000):  # but for the compiled Yosys, which may cache itself
            write_atomically(path, text)

    monkeypatch.setattr("scotopia.hdl.emit.write_atomically", fill_up)
    status, _, err = run("emit", "retina-int", "--out", out, "--height", 8)
    assert (status, err) == (
        2,
        f"scotopia: {out}/sequencer.v: File too large: "
        "raise the limit on file sizes, or choose another folder\n",
    )
    assert not (out / "manifest.json").exists()
    assert all(path.read_text().rstrip().endswith("endmodule") for path in out.glob("*.v"))
    assert (out / "sequencer.v").read_text() == earlier
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
