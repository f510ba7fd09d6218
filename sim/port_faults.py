"""Faults at the ports, as someone who edits the Verilog by hand might make them.

In the array, the operators of `faults` are enough. Sequencer and row buffer keep promises, and
what breaks one is named here: a command that does too little, a word that does not wait, a counter
that counts wrong, something that outlives a reset.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from scotopia.graph.errors import InputError

from .faults import Area, Edit, Fault, expression


@dataclass(frozen=True)
class PortFault:
    """A change of the emitted text.

    Attributes
    ----------
    name
        What is wrong, in a few words.
    area
        Where it lies.
    module, pattern, text
        Where, a regular expression that must match there once, and what it becomes.
    scenario
        The one out of `cocotb_stress.SCENARIOS` that is there to find it.
    targets
        It makes no difference to a rule that has fewer `targets`.
    """

    name: str
    area: Area
    module: str
    pattern: str
    text: str
    scenario: str
    targets: int = 1

    def plant(self, text: str) -> str:
        """Return the module's text with the fault.

        Raises
        ------
        InputError
            If the pattern does not match.
        """
        changed, count = re.subn(self.pattern, self.text, text, flags=re.DOTALL)
        if not count:
            raise InputError(
                f"fault {self.name!r} finds no place in {self.module}: mend its pattern"
            )
        return changed

    def fault(self, folder: Path) -> Fault:
        """Return it as edits of the Verilog in `folder`, none of which changes more than a line."""
        file = f"{self.module}.v"
        before = (folder / file).read_text()
        edits = []
        lines = before.split("\n"), self.plant(before).split("\n")
        for number, (old, new) in enumerate(zip(*lines, strict=True), 1):
            if old != new:
                start, end = expression(old)
                edits.append(Edit(file, number, start, end, new[start : end + len(new) - len(old)]))
        return Fault(self.area, f"{file}: {self.name}", edits=tuple(edits))


# Patterns of the sequencer. Its states: 0 reset, 1 clears, 2 idle, 3 takes a sample, 4 decides
# whether there is a step to do, 7 does it, 5 and 8 forget, 6 and 9 load a channel, a to c send it.
_IN_CASE = r"(?:(?!endcase).)*?"
_IN_BLOCK = r"(?:(?!always).)*?"
_STEPS = rf"(= \\\$signal\$\d+ ;\s+casez \(fsm_state\){_IN_CASE}= )commands__payload\[9:2\]"
_FRAME_STEPS = rf"({_STEPS};{_IN_CASE}2'h0:\s+\\\$\d+  = )(8'h[0-9a-f]+);"
_WHOLE_FRAME = (
    r"(?=.*?4'h8:\s+if \(done\) begin\s+\(\* full_case = 32'd1 \*\)\s+if \((\\\$signal\$\d+) \))"
)


def _kept_in_reset(name: str) -> str:
    return rf"(= {name};{_IN_BLOCK}if \(rst\) begin\s+\\\$\d+  = )\d+'h0+;"


_S, _R = "sequencer", "row_buffer"
_BACK_TO_BACK = "commands back to back"
_FORGET = "FORGET ends the frame"
_LATE = "pixels taken late, or never"
_RESTART = "counters restart with a reset"
_RESETS = "reset at any time"
_STALLS = "random stalls on every stream"
_READ_NONE = "READ of a channel that is not there"
_WHILE_BUSY = "words written while busy"
_OUTSIDE = "samples outside the array"
_LOADED = "every channel loaded"
_EVERY_CLOCK = "samples in every clock"
_SWAP = "another rule loaded under traffic"
_CLEARED = "status cleared at the clock of a drop"

#: A fault each: name, area, module, pattern, text, scenario.
PORT_FAULTS: tuple[PortFault, ...] = tuple(
    PortFault(*fault)
    for fault in (
        # Commands.
        (
            *("FRAME runs a step less", Area.SEQUENCER, _S),
            *(_FRAME_STEPS, r"\1\3 - 1'h1;", _FORGET),
        ),
        (
            *("FRAME runs a step more", Area.SEQUENCER, _S),
            *(_FRAME_STEPS, r"\1\3 + 1'h1;", _FORGET),
        ),
        (
            *("RUN runs a step more", Area.SEQUENCER, _S),
            *(_STEPS + ";", r"\1commands__payload[9:2] + 1'h1;", "RUN of 0 to 255 steps"),
        ),
        (
            *("FRAME sends channel 1", Area.READOUT, _S),
            rf"(= channel;\s+casez \(fsm_state\){_IN_CASE}2'h0:\s+\\\$\d+  = )8'h00;",
            *(r"\g<1>8'h01;", _FORGET),
        ),
        (
            *("FRAME leaves the valid flags", Area.SEQUENCER, _S),
            r"(4'h5:\s+entry = )(\d+'h[0-9a-f]+);"
            rf"(?={_IN_CASE}4'ha:\s+entry = (\d+'h[0-9a-f]+);){_WHOLE_FRAME}",
            *(r"\1\4 ? \3 : \2;", "no samples"),
        ),
        (
            *("FORGET leaves the valid flags", Area.SEQUENCER, _S),
            rf"(4'h5:\s+entry = )\d+'h[0-9a-f]+;(?={_IN_CASE}4'ha:\s+entry = (\d+'h[0-9a-f]+);)",
            *(r"\1\2;", _FORGET),
        ),
        (
            *("a command after FRAME is taken for one", Area.SEQUENCER, _S),
            rf"(\\\$\d+  = (\\\$signal\$\d+ );\s+casez \(fsm_state\){_IN_CASE}  = )1'h0"
            r"(;\s+if \(samples__valid\))",
            *(r"\1\2\3", _BACK_TO_BACK),
        ),
        (
            *("the channel after the last one is read", Area.READOUT, _S),
            *(r"channel >= ", "channel > ", _READ_NONE),
        ),
        (
            *("commands are taken while a sample is offered", Area.SEQUENCER, _S),
            *(r"(commands__ready = )\\\$\d+ ;", r"\g<1>1'h1;", _STALLS),
        ),
        (
            *("commands are taken while busy", Area.SEQUENCER, _S),
            *(r"commands__ready = 1'h0;", "commands__ready = ~samples__valid;", _BACK_TO_BACK),
        ),
        (
            *("busy is low while words are sent", Area.SEQUENCER, _S),
            *(r"busy = 1'h1;", "busy = fsm_state != 4'hc;", _STALLS),
        ),
        # Samples.
        (
            *("samples wait in steps", Area.SAMPLES, _S),
            *(r"(4'h7:\s+samples__ready = )1'h1;", r"\g<1>1'h0;", _EVERY_CLOCK),
        ),
        (
            *("samples outside are not counted", Area.SAMPLES, _S),
            *(r"dropping = 1'h1;", "dropping = 1'h0;", _OUTSIDE),
        ),
        (
            *("samples in steps are not counted", Area.SAMPLES, _S),
            *(r"dropping = samples__valid;", "dropping = 1'h0;", _EVERY_CLOCK),
        ),
        (
            *("a row that is not there is taken for one", Area.SAMPLES, _S),
            r"(samples__payload\[\d+:\d+\] < )(\d+'h[0-9a-f]+);(?=\s+assign \\\$\d+  = \\\$\d+  &"
            r"[^;]*;\s+assign \\\$\d+  = samples__payload)",
            *(r"\1\2 + 1'h1;", _OUTSIDE),
        ),
        (
            *("a sample is for another word of its cell", Area.SAMPLES, _S),
            r"(casez \(samples__payload\[\d+:\d+\]\)\s+\S+\s+\\\$\d+  = )\S+;"
            r"(\s+\S+\s+\\\$\d+  = )(\S+);",
            *(r"\1\3;\2\3;", _LOADED, 2),
        ),
        # Words.
        (
            *("a word goes on without being taken", Area.READOUT, _R),
            *(r"= pixels__valid & pixels__ready;", "= pixels__valid;", _LATE),
        ),
        (
            *("a word changes while it waits", Area.READOUT, _R),
            *(r"(moving <= (\\\$\d+) ;.*?  \2  = )\\\$\d+ ;", r"\g<1>pixels__valid;", _LATE),
        ),
        (
            *("a word is valid only to a ready receiver", Area.READOUT, _R),
            *(r"(assign pixels__valid = [^;]*);", r"\1 & pixels__ready;", _LATE),
        ),
        (
            *("every row starts a frame", Area.READOUT, _R),
            *(r"= first_row;", "= 1'h1;", _STALLS),
        ),
        (
            *("tlast comes a pixel too early", Area.READOUT, _R),
            r"(assign \\\$\d+  = left == )1'h1;"
            r"(.*assign sent = \\\$\d+  & )pixels__payload\[\d+\];",
            *(r"\g<1>2'h2;\2(left == 1'h1);", _STALLS),
        ),
        # Counters and registers.
        (
            *("frames counts by two", Area.SEQUENCER, _S),
            *(r"frames \+ 1'h1", "frames + 2'h2", _RESTART),
        ),
        (
            *("FORGET counts as a frame", Area.SEQUENCER, _S),
            r"(\\\$\d+  = frames;.*?if \(done\) begin\s+)if \(\\\$signal\$\d+ \)",
            *(r"\1if (1'b1)", _FORGET),
        ),
        (
            *("dropped does not count", Area.SAMPLES, _S),
            *(r"dropped \+ 1'h1", "dropped + 1'h0", _RESTART),
        ),
        (
            *("a write to STATUS leaves error", Area.SEQUENCER, _S),
            rf"(= error;{_IN_BLOCK}if \(_forgiven\) begin\s+\\\$\d+  = )1'h0;",
            *(r"\1error;", _CLEARED),
        ),
        (
            *("bit 0 of STATUS clears the drops", Area.SEQUENCER, _S),
            *(r"registers__write_data\[1\]", "registers__write_data[0]", _CLEARED),
        ),
        (
            *("busy and error change places in STATUS", Area.SEQUENCER, _S),
            *(r"error, busy", "busy, error", _RESTART),
        ),
        (
            *("DROPPED reads FRAMES", Area.SEQUENCER, _S),
            *(r"16'h0000, dropped", "16'h0000, frames", _RESTART),
        ),
        (
            *("SHAPE is another", Area.SEQUENCER, _S),
            *(r"(3'h6:\s+\\\$\d+  = )(32'd\d+);", r"\1\2 ^ 1'h1;", _STALLS),
        ),
        (
            *("the program is written while busy", Area.SEQUENCER, _S),
            r"(assign writing__en = \\\$\d+)  & \\\$\d+ ;",
            *(r"\1 ;", _WHILE_BUSY),
        ),
        (
            *("PROGRAM_ADDRESS does not count on", Area.SEQUENCER, _S),
            *(r"(3'h5:\s+\\\$\d+  = )\\\$\d+ \[\d+:0\];", r"\1writing__addr;", _SWAP),
        ),
        (
            *("PROGRAM_LOW is written without write", Area.SEQUENCER, _S),
            *(r"(= low;\s+)if \(registers__write\)", r"\1if (1'h1)", _SWAP),
        ),
        # Resets.
        (
            *("a reset leaves error", Area.SEQUENCER, _S),
            *(_kept_in_reset("error"), r"\1error;", _RESTART),
        ),
        (
            *("a reset leaves dropped", Area.SAMPLES, _S),
            *(_kept_in_reset("dropped"), r"\1dropped;", _RESTART),
        ),
        (
            *("a reset leaves frames", Area.SEQUENCER, _S),
            *(_kept_in_reset("frames"), r"\1frames;", _RESTART),
        ),
        (
            *("a reset leaves what the sequencer does", Area.SEQUENCER, _S),
            *(_kept_in_reset("fsm_state"), r"\1fsm_state;", _RESETS),
        ),
        (
            *("a reset leaves words that wait", Area.READOUT, _R),
            *(_kept_in_reset("left"), r"\1left;", _LATE),
        ),
        (
            *("memory is not cleared after a reset", Area.SEQUENCER, _S),
            r"(store_1 <= (\\\$\d+) ;.*?    \2  = \\\$\d+ );",
            *(r"\1& (fsm_state != 4'h1);", _RESETS),
        ),
    )
)
