"""A FuseSoC core file, so that others can use the Verilog in their own flow."""

from collections.abc import Sequence
from importlib.metadata import version

#: The core file's name, beside the Verilog.
CORE = "retina.core"


def fusesoc_core(sources: Sequence[str], description: str) -> str:
    """Return a core file (CAPI 2) of Verilog files with the module `retina` on top.

    Parameters
    ----------
    sources
        File names, relative to the core file.
    description
        One line, with no quotation marks.
    """
    files = "\n".join(f"      - {name}" for name in sources)
    return f"""CAPI=2:

name: "scotopia:array:retina:{version("scotopia")}"
description: "{description}"

filesets:
  rtl:
    files:
{files}
    file_type: verilogSource-2005

targets:
  default: &default
    filesets: [rtl]
    toplevel: retina
  lint:
    <<: *default
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wno-fatal]
"""
