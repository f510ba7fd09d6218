"""Time and size of emitted Verilog against the size of the array: python bench/emission.py"""

import tempfile
import time
from pathlib import Path

from scotopia.cli.rules import rule_path
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule


def main() -> None:
    """Print one line a size. The first emission also loads Yosys, so it is done once before."""
    program = Program.compile(IntegerRule.load(rule_path("retina-int")))
    with tempfile.TemporaryDirectory() as folder:
        emit(program, 2, 2, Path(folder))
    print("cells        seconds    bytes")
    for side in (16, 64, 128, 256):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            emit(program, side, side, Path(folder))
            seconds = time.perf_counter() - start
            size = sum(path.stat().st_size for path in Path(folder).glob("*.v"))
        print(f"{side:4} x {side:<4}  {seconds:8.2f} {size:9,}")


if __name__ == "__main__":
    main()
