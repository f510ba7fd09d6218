"""What all pages share: pictures inside of HTML, numbers, and the template's environment."""

import base64
import io
import math
from collections.abc import Iterable
from importlib import resources
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def environment() -> Environment:
    """Value of an environment that finds the templates, and `page.css`, beside this module."""

    def read(name: str) -> str:
        return resources.files("scotopia.cli").joinpath(name).read_text("utf-8")

    found = Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = _number
    found.filters["href"] = quote
    return found


def figure(cost: float | None) -> str:
    """Text of a cost: bits are whole, LUT4 for a throughput are not; a dash for None."""
    if cost is None:
        return "–"
    return f"{cost:,.2f}" if isinstance(cost, float) else f"{cost:,}"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def finite(curve: Iterable[float], digits: int = 3) -> list[float | None]:
    """Value of a curve for JSON, which has neither NaN nor a perfect frame's infinity."""
    return [round(float(x), digits) if math.isfinite(x) else None for x in curve]


def gray(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Value of each pixel in [0, 1] as the nearest of 256 grays."""
    grays: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grays


def data_uri(picture: bytes) -> str:
    """Value of a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Value of gray (H, W), gray and opacity (H, W, 2) or RGB (H, W, 3) as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sheet(frames: NDArray[np.uint8]) -> dict[str, object]:
    """Value of gray (T, H, W), of gray and opacity or RGB (T, H, W, 2 or 3), as one lossless PNG.

    Frame t stands in row ``t // columns`` and column ``t % columns``. Nearly square, because
    browsers refuse images that are longer than some ten thousand pixels.
    """
    count, height, width, *depth = frames.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, *depth), np.uint8)
    padded[:count] = frames
    grid = padded.reshape(rows, columns, height, width, *depth).swapaxes(1, 2)
    pixels = grid.reshape(rows * height, columns * width, *depth)
    return {"sheet": data_uri(png(pixels)), "columns": columns}
