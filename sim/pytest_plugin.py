"""For pytest in projects of one's own: the fixture `scotopia_verify`.

Pytest finds it wherever Scotopia is installed::

    def test_my_rule_is_my_verilog(scotopia_verify):
        scotopia_verify(Path("my_rule.safetensors"), 8, 8, verilog=Path("my_verilog"))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .verify import Stage

#: Random pixels that are shown by default, and the share of them that arrives.
FRAMES, DENSITY, SEED = 2, 0.3, 0


# Every start of pytest imports this: what takes seconds to import comes when it is used.


def verify_rule(
    rule: Any,
    height: int = 4,
    width: int = 4,
    *,
    frames: Any = None,
    density: float = DENSITY,
    seed: int = SEED,
    verilog: Path | None = None,
    library: Sequence[Path] = (),
    simulator: str = "verilator",
    ports: bool = True,
    waveforms: Path | None = None,
) -> "list[Stage]":
    """Verify a rule, and fail the test that called unless every stage agrees.

    Parameters
    ----------
    rule
        An `IntegerRule`, or the path of one.
    height, width
        Of the array.
    frames
        (T, H, W) in [0, 1], at least as large as the array; by default two frames of noise.
    density, seed
        Of the pixels that arrive.
    verilog, library, simulator, ports, waveforms
        As in `scotopia.sim.verify.verify`.

    Returns
    -------
    The stages, for claims of one's own.

    Raises
    ------
    InputError
        If the rule or the Verilog cannot be read, or a tool is missing.
    """
    import numpy as np

    from scotopia.quantize.integer_rule import IntegerRule

    from .verify import Extent, verify

    __tracebackhide__ = True
    if not isinstance(rule, IntegerRule):
        rule = IntegerRule.load(Path(rule))
    if frames is None:
        frames = np.random.default_rng(seed).random((FRAMES, height, width)).astype(np.float32)
    stages = verify(
        rule,
        frames,
        Extent(height, width, len(frames)),
        density=density,
        seed=seed,
        verilog=verilog,
        library=library,
        simulator=simulator,
        ports=ports,
        waveforms=waveforms,
    )
    if wrong := [stage for stage in stages if not stage.passed]:
        pytest.fail(f"{wrong[0].name}: {wrong[0].detail or 'nothing was compared'}", pytrace=False)
    return stages


@pytest.fixture(scope="session")
def scotopia_verify() -> "Callable[..., list[Stage]]":
    """Value of `verify_rule`, which fails a test where a rule and its Verilog differ."""
    return verify_rule
