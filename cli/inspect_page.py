"""An inspection as one page that stands alone, and as figures for machines."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scotopia.model.score import psnr_curve

from .automaton import Video
from .inspect import HEALED, RECOVERED, VISIBLE, Inspection, Ripple, region_psnr
from .page import data_uri, environment, finite, gray, png, sheet

CHANNEL_BYTES = 7_000_000  # PNG bytes the page spends on channels before it thins them out
GRAYS = 64  # of a channel's picture: all that a colour map can tell, in half the bytes
DECADES = 4  # of the ripple's logarithmic colour scale, from 1 down: the page says 0.0001
RIPPLE_FRAMES = 3  # frames after the changed sample that the page shows step by step

#: Kinds of damage as the page calls them: title, colour.
DAMAGE_TITLES = {
    "zero": ("All erased", "#63e6be"),
    "random": ("All set to random numbers", "#f2b45c"),
    "shared": ("Random, what cells keep to themselves spared", "#d79bf0"),
}


def figures_of(
    found: Inspection,
    rule: str,
    kind: str,
    cost: dict[str, int],
    clip: str | None,
    density: float | None,
    seed: int,
) -> dict[str, Any]:
    """All figures of an inspection, ready for JSON; what is not finite is None.

    Parameters
    ----------
    rule, kind, cost
        Name, "float rule" or "integer rule", and costs by name.
    clip, density, seed
        What was shown; None for clip and density, if nothing was.
    """
    count, height, width = found.frames.shape
    history, ripple, subject = found.history, found.ripple, found.subject
    truth = found.frames[..., None] if subject.sees else None
    rows, columns = found.region
    after = slice(found.onset, None)
    return {
        "rule": rule,
        "kind": kind,
        "cost": cost,
        "clip": clip,
        "density": density,
        "seed": seed,
        "frames": count,
        "width": width,
        "height": height,
        "block": subject.block,
        "steps_per_frame": subject.steps_per_frame,
        "warm_up": found.onset,
        "picture": history.picture.kind,
        "psnr": None if truth is None else _pooled_psnr(truth[after], history.pictures[after]),
        "psnr_by_frame": None
        if truth is None
        else finite(region_psnr(truth, history.pictures, (slice(None), slice(None)))),
        "channels": {
            name: {key: finite(curve[:, c], 5) for key, curve in history.statistics.items()}
            for c, name in enumerate(subject.channel_names)
        },
        "gates": {
            name: {
                "mean": finite(history.gates[:, c], 5),
                "at_samples": finite(history.gates_at_samples[:, c], 5),
            }
            for c, name in enumerate(subject.gated)
        },
        "sample": _ripple_figures(ripple),
        "damage": {
            "frame": found.onset,
            "x": columns.start,
            "y": rows.start,
            "side": rows.stop - rows.start,
            "recovered_within_db": RECOVERED if subject.sees else None,
            "recovered_above_db": None if subject.sees else HEALED,
            "undamaged_psnr": None
            if truth is None
            else finite(region_psnr(truth[after], history.pictures[after], found.region)),
            "kinds": {
                name: {
                    "psnr": finite(recovery.psnr),
                    "first_frames": recovery.first,
                    "lasting_frames": recovery.lasting,
                }
                for name, recovery in found.recoveries.items()
            },
        },
    }


def _pooled_psnr(frames: Video, estimates: Video) -> float:
    """PSNR over all frames together, in dB."""
    pooled = psnr_curve(*(one.reshape(1, 1, -1) for one in (frames, estimates)))
    return round(float(pooled[0]), 4)


def _ripple_figures(ripple: Ripple) -> dict[str, Any]:
    def places(distances: NDArray[np.int64]) -> list[int | None]:
        pixels = distances * ripple.block
        return [int(distance) if distance >= 0 else None for distance in pixels]

    peak = int(ripple.visible.argmax())
    return {
        "frame": ripple.frame,
        "x": ripple.x,
        "y": ripple.y,
        "added": ripple.added,
        "before": round(ripple.before, 5),
        "after": round(ripple.after, 5),
        "next_sample_frames": ripple.renewed,
        "peak_step": peak + 1,
        "peak_radius_pixels": finite(ripple.radius[peak : peak + 1], 4)[0] or 0,
        "half_life_steps": ripple.half_life,
        "visible_half_life_steps": ripple.visible_half_life,
        "light_cone": {
            "steps_checked": len(ripple.front),
            "violations": ripple.violations,
            "front_pixels_per_step": round(ripple.speed * ripple.block, 4),
            "visible_reach_pixels": max(0, int(ripple.farthest.max()) * ripple.block),
            "visible_reach_step": int(ripple.farthest.argmax()) + 1,
        },
        "by_step": {
            "total": finite(ripple.total, 6),
            "visible": finite(ripple.visible, 6),
            "largest": finite(ripple.largest, 6),
            "radius": finite(ripple.radius, 4),
            "farthest": places(ripple.farthest),
            "front": places(ripple.front),
        },
    }


def render_page(found: Inspection, figures: dict[str, Any]) -> str:
    """Value of an inspection as one HTML page that refers to nothing outside itself."""
    subject, history = found.subject, found.history
    channels, stride = _channel_sheets(history.values)
    truth = gray(found.frames)
    samples = np.stack([truth * found.mask, found.mask * np.uint8(255)], axis=-1)
    steps = _ripple_steps(found)
    box = _around(figures["damage"], found.frames.shape[1:])
    data = {
        "figures": figures,
        "names": list(subject.channel_names),  # in order, which JSON's objects do not promise
        "truth": sheet(truth) if subject.sees else None,
        "samples": sheet(samples) if subject.sees else None,
        "arrived": found.mask.sum(axis=(1, 2)).tolist(),
        "picture": sheet(_pixels(history.pictures)),
        "channels": channels,
        "ripple": {
            "steps": [int(step) + 1 for step in steps],
            **sheet(_logarithm(found.ripple.difference[steps])),
            "spacetime": data_uri(png(_spacetime(found.ripple))),
            "rows": len(_spacetime(found.ripple)),
        },
        "damage": {
            "left": box[1].start,
            "top": box[0].start,
            "side": box[0].stop - box[0].start,
            "kinds": [
                {
                    "name": name,
                    "title": DAMAGE_TITLES[name][0],
                    "colour": DAMAGE_TITLES[name][1],
                    **sheet(_pixels(np.stack([recovery.damaged, *recovery.pictures])[:, *box])),
                }
                for name, recovery in found.recoveries.items()
            ],
        },
    }
    return (
        environment()
        .get_template("inspect.html")
        .render(
            figures=figures,
            data=data,
            names=subject.channel_names,
            formats=subject.formats,
            sees=subject.sees,
            own=[subject.channel_names[c] for c in subject.own],
            channels=channels,
            stride=stride,
            percent=f"{100 * figures['density']:g}" if subject.sees else "",
            visible=VISIBLE,
            titles=DAMAGE_TITLES,
            steps_shown=RIPPLE_FRAMES * subject.steps_per_frame,
        )
    )


def _pixels(pictures: Video) -> NDArray[np.uint8]:
    """Value of pictures (T, H, W, K) as gray (T, H, W), or as colours."""
    return gray(pictures[..., 0] if pictures.shape[-1] == 1 else pictures)


def _channel_sheets(values: Video) -> tuple[list[dict[str, Any]], int]:
    """Value of the channels (T, C, h, w) as sheets of codes, and every how many frames.

    A code stands for (code - 128) / 128 * scale, or for code / 255 * scale of a channel that is
    never negative. All but one value in 200 fit into a channel's scale.
    """
    planes = []
    for plane in np.moveaxis(values, 1, 0):
        scale = float(np.quantile(np.abs(plane), 0.995)) or float(np.abs(plane).max()) or 1.0
        signed = bool(plane.min() < 0)
        codes = _codes(plane, scale) if signed else gray(plane / scale)
        step = 256 // GRAYS
        planes.append((scale, signed, codes // step * step))

    def sheets(stride: int) -> list[dict[str, Any]]:
        return [
            {"scale": round(scale, 4), "signed": signed, "stride": stride, **sheet(codes[::stride])}
            for scale, signed, codes in planes
        ]

    shown = sheets(1)
    size = sum(len(str(one["sheet"])) for one in shown) * 3 // 4  # base64
    stride = max(1, math.ceil(size / CHANNEL_BYTES))
    return (shown if stride == 1 else sheets(stride)), stride


def _codes(plane: Video, scale: float) -> NDArray[np.uint8]:
    codes: NDArray[np.uint8] = np.clip(np.rint(128 + plane * (128 / scale)), 0, 255).astype(
        np.uint8
    )
    return codes


def _ripple_steps(found: Inspection) -> NDArray[np.int64]:
    """Steps that the page shows, from 0: all of the first frames, then each frame's last."""
    count, every = len(found.ripple.difference), found.subject.steps_per_frame
    step = np.arange(count)
    shown: NDArray[np.int64] = step[(step < RIPPLE_FRAMES * every) | (step % every == every - 1)]
    return shown


def _logarithm(difference: Video) -> NDArray[np.uint8]:
    """Value of differences as codes: 0 for none at all, 1 for 10**-DECADES or less, 255 for 1."""
    with np.errstate(divide="ignore"):
        level = 1 + 254 * (np.log10(difference) + DECADES) / DECADES
    codes: NDArray[np.uint8] = np.where(difference > 0, np.clip(level, 1, 255), 0).astype(np.uint8)
    return codes


def _spacetime(ripple: Ripple) -> NDArray[np.uint8]:
    """Value of the largest difference in each column after each step, as codes (steps, W).

    As many steps as the picture is wide, so that light's path has 45 degrees.
    """
    return _logarithm(ripple.difference.max(axis=1)[: ripple.difference.shape[2]])


def _around(damage: dict[str, Any], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Value of the square shown around the damaged one, twice as wide where there is room."""
    side = min(2 * damage["side"], *shape)
    top, left = (
        max(0, min(start - (side - damage["side"]) // 2, length - side))
        for start, length in zip((damage["y"], damage["x"]), shape, strict=True)
    )
    return slice(top, top + side), slice(left, left + side)
