"""Look inside a trained rule: its channels over time, a sample's ripple, the recovery from damage.

All experiments know a rule only as an `Automaton`, so that they are the same for a float rule and
for an integer rule, and so that a test can put any step in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.model.score import WARM_UP, psnr_curve
from scotopia.quantize.layered_rule import LayeredRule

from .automaton import Automaton, Mask, State, Values, Video, automaton

#: Frames that the experiments watch after the warm-up, at least.
WATCHED = 30

#: A difference in brightness that an 8-bit pixel can show.
VISIBLE = 1 / 255

#: A learned channel is saturated this near to either end of its range: one code of Q1.7.
END = 1 / 128

#: A damaged region has recovered when its PSNR is this near to the undamaged one's, in dB.
RECOVERED = 0.5

Region = tuple[slice, slice]  # rows, columns


# Every channel over time


@dataclass(frozen=True, eq=False)
class History:
    """What a rule's channels do over T frames.

    Attributes
    ----------
    states
        The T states at the ends of the frames.
    values
        (T, C, H, W), all channels.
    predictions
        (T, H, W), brightness, clipped to [0, 1].
    statistics
        Name to (T, C): mean, std, min and max over the cells, and `saturated`, the share of cells
        within `END` of -1 or 1 (of a trace: NaN, since both its ends are its daily work).
    gates, gates_at_samples
        (T, learned): mean opening over a frame's steps and over all cells, or those that a sample
        reached in that frame (NaN without one); None if the rule does not tell.
    """

    states: list[State]
    values: Video
    predictions: Video
    statistics: dict[str, Values]
    gates: Values | None
    gates_at_samples: Values | None


def watch(subject: Automaton, frames: Video, mask: Mask) -> History:
    """Run a rule over a clip and keep everything.

    Raises
    ------
    InputError
        If a state is not finite.
    """
    state = subject.start(*frames.shape[1:])
    states, gates, gates_at_samples = [], [], []
    for number, (sample, valid) in enumerate(zip(subject.samples(frames), mask, strict=True)):
        opened = np.zeros((subject.learned, *valid.shape))
        steps = subject.config.steps_per_frame
        for step in range(number * steps, (number + 1) * steps):
            if subject.gates:
                opened += subject.gates(state, sample, valid) / steps
            state = subject.step(state, sample, valid, step)
        if not np.isfinite(state).all():
            raise InputError(
                f"the rule's state is not finite at frame {number}: its weights are too large, "
                "train it again"
            )
        states.append(state)
        gates.append(opened.mean(axis=(1, 2)))
        reached = opened[:, valid]
        gates_at_samples.append(
            reached.mean(axis=1) if valid.any() else np.full(len(opened), np.nan)
        )
    values = np.stack([subject.values(state) for state in states]).astype(np.float32)
    return History(
        states=states,
        values=values,
        predictions=_brightness(subject, states),
        statistics=statistics(values),
        gates=np.stack(gates) if subject.gates else None,
        gates_at_samples=np.stack(gates_at_samples) if subject.gates else None,
    )


def _brightness(subject: Automaton, states: list[State]) -> Video:
    """Brightness that states predict, (T, H, W), clipped to [0, 1]."""
    predictions = [subject.prediction(state) for state in states]
    return np.clip(predictions, 0, 1).astype(np.float32)


def statistics(values: Video) -> dict[str, Values]:
    """Figures of (T, C, H, W) over the cells, as `History.statistics` has them."""
    cells = (2, 3)
    saturated = (np.abs(values) >= 1 - END).mean(axis=cells)
    saturated[:, -1] = np.nan
    return {
        "mean": values.mean(axis=cells, dtype=np.float64),
        "std": values.std(axis=cells, dtype=np.float64),
        "min": values.min(axis=cells).astype(np.float64),
        "max": values.max(axis=cells).astype(np.float64),
        "saturated": saturated,
    }


# The receptive field of one sample


@dataclass(frozen=True, eq=False)
class Ripple:
    """What one changed sample does to the prediction, over S steps.

    Attributes
    ----------
    frame, x, y
        Where the sample is changed.
    added
        Whether that pixel arrived only because the experiment made it, in both runs.
    before, after
        The sample's brightness in either run.
    difference
        (S, H, W): |difference| of the predictions' brightness, after each step.
    total, visible, largest
        (S,): sum of the difference, its sum over the cells where it is above `VISIBLE`, maximum.
    radius
        (S,) effective radius in pixels: the root of the difference's second moment about the
        sample. NaN without a difference.
    farthest
        (S,) distance of the farthest cell whose difference is above `VISIBLE`, in cells, -1
        without one. A distance is the larger of the row's and the column's: steps that light needs.
    front
        (S,) distance in cells of the farthest one with any difference in any channel, -1 without
        one.
    half_life, visible_half_life
        Steps from the peak of `total`, or of `visible`, until it is down to half; None if it never
        is. An integer rule's last bits may flicker on for long, all over the array: the sum of
        that is large, yet nobody sees it.
    block
        A cell stands for block x block pixels.
    renewed
        Frames until the pixel's next sample, which ends what the sensor remembers; None if none
        arrives.
    """

    frame: int
    x: int
    y: int
    added: bool
    before: float
    after: float
    difference: Video
    total: Values
    visible: Values
    largest: Values
    radius: Values
    farthest: NDArray[np.int64]
    front: NDArray[np.int64]
    half_life: int | None
    visible_half_life: int | None
    renewed: int | None
    block: int = 1

    @property
    def speed(self) -> float:
        """Cells that `front` ran in a step, until the light cone met the nearest edge; up to 1."""
        height, width = self.difference.shape[1:]
        edge = min(self.x, self.y, width - 1 - self.x, height - 1 - self.y) // self.block
        steps = max(1, min(edge, len(self.front)))
        return float(max(0, self.front[steps - 1]) / steps)

    @property
    def violations(self) -> int:
        """Steps after which something differs beyond the light cone, a cell a step; must be 0."""
        return int((self.front > np.arange(1, len(self.front) + 1)).sum())


def nearest_shown(shown: Mask) -> tuple[int, int]:
    """Column and row of the shown pixel (H, W) nearest the centre; the centre if there is none."""
    height, width = shown.shape
    rows, columns = np.nonzero(shown)
    if not len(rows):
        return width // 2, height // 2
    nearest = np.argmin((rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def distances(
    shape: tuple[int, int], x: int, y: int, wrap: bool, block: int = 1
) -> NDArray[np.int64]:
    """Steps that information needs from pixel (x, y) to every other of (H, W), a cell a step."""
    height, width = (side // block for side in shape)
    rows, columns = (
        np.abs(np.arange(side) // block - place // block)
        for side, place in zip(shape, (y, x), strict=True)
    )
    if wrap:
        rows, columns = np.minimum(rows, height - rows), np.minimum(columns, width - columns)
    return np.maximum(rows[:, None], columns)


def perturb(
    subject: Automaton, state: State, frames: Video, mask: Mask, at: tuple[int, int], frame: int = 0
) -> Ripple:
    """Run on from `state` twice, with one sample of the first frame changed by a half.

    Parameters
    ----------
    state
        Before the first of `frames`.
    frames, mask
        (T, H, W), T at least 1.
    at
        Column and row of the sample.
    frame
        Number of the first frame.
    """
    x, y = at
    reached = mask.copy()
    reached[0, y, x] = True
    changed = frames.copy()
    before = float(frames[0, y, x])
    after = before + 0.5 if before <= 0.5 else before - 0.5
    changed[0, y, x] = after

    block = subject.config.block
    away = distances(frames.shape[1:], x, y, subject.config.border == "wrap", block)
    difference, front = [], []
    runs = (subject.run(state, clip, reached, frame) for clip in (frames, changed))
    for one, other in zip(*runs, strict=True):
        difference.append(np.abs(subject.prediction(one) - subject.prediction(other)))
        front.append(_farthest((one != other).any(axis=0), away))
    exact = np.stack(difference)
    total = exact.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        rows, columns = np.indices(away.shape)
        radius = np.sqrt((exact * ((rows - y) ** 2 + (columns - x) ** 2)).sum(axis=(1, 2)) / total)
    # A difference of one code of Q1.7 is 1/255 but for float64's rounding: it is not above.
    seen = exact > VISIBLE * (1 + 1e-9)
    visible = (exact * seen).sum(axis=(1, 2))
    later = np.flatnonzero(mask[1:, y, x])
    return Ripple(
        frame=frame,
        x=x,
        y=y,
        added=not bool(mask[0, y, x]),
        before=before,
        after=after,
        difference=exact.astype(np.float32),
        total=total,
        visible=visible,
        largest=exact.max(axis=(1, 2)),
        radius=radius,
        farthest=np.array([_farthest(cells, away) for cells in seen]),
        front=np.array(front),
        half_life=half_life(total),
        visible_half_life=half_life(visible),
        block=block,
        renewed=int(later[0]) + 1 if len(later) else None,
    )


def _farthest(cells: Mask, away: NDArray[np.int64]) -> int:
    return int(away[cells].max(initial=-1))


def half_life(curve: Values) -> int | None:
    """Steps from a curve's peak until it is down to half of it; None if it never is."""
    peak = int(np.argmax(curve))
    down = np.flatnonzero(curve[peak:] <= curve[peak] / 2)
    return int(down[0]) if len(down) and curve[peak] > 0 else None


# Damage


@dataclass(frozen=True, eq=False)
class Recovery:
    """How a damaged region of the state comes back, over T frames.

    Attributes
    ----------
    damaged
        (H, W), brightness that the damaged state predicts before it runs on, in [0, 1].
    predictions
        (T, H, W), after each frame.
    psnr
        (T,): of the predictions against the truth, inside the region, in dB.
    first
        Frames until the PSNR is within `RECOVERED` of the undamaged run's; None if it never is.
    lasting
        Frames until it is and stays so; None if it is not at the end.
    """

    damaged: Video
    predictions: Video
    psnr: Values
    first: int | None
    lasting: int | None


def central_region(height: int, width: int, block: int = 1) -> Region:
    """Rows and columns of a centred square of cells, a quarter of the shorter side wide."""
    side = max(1, min(height, width) // 4 // block) * block
    top, left = ((length - side) // 2 // block * block for length in (height, width))
    return slice(top, top + side), slice(left, left + side)


def set_to_zero(subject: Automaton, state: State, region: Region, seed: int) -> State:
    """Value of a state in which the region is as before the first sample; no seed is needed."""
    return _replaced(state, subject.start(*state.shape[1:]), region)


def set_to_random(subject: Automaton, state: State, region: Region, seed: int) -> State:
    """Value of a state in which the region's numbers are random, in every channel's range."""
    return _replaced(state, subject.scramble(np.random.default_rng(seed), state), region)


def set_learned_to_random(subject: Automaton, state: State, region: Region, seed: int) -> State:
    """As `set_to_random`, but the input register, last sample and trace, stays as it is."""
    damaged = set_to_random(subject, state, region, seed)
    damaged[subject.learned :] = state[subject.learned :]
    return damaged


#: Kinds of damage.
DAMAGES: dict[str, Callable[[Automaton, State, Region, int], State]] = {
    "zero": set_to_zero,
    "random": set_to_random,
    "learned": set_learned_to_random,
}


def _replaced(state: State, other: State, region: Region) -> State:
    damaged = state.copy()
    damaged[:, *region] = other[:, *region]
    return damaged


def recover(
    subject: Automaton,
    state: State,
    frames: Video,
    mask: Mask,
    region: Region,
    undamaged: Video,
    frame: int = 0,
) -> Recovery:
    """Run on from a damaged state.

    Parameters
    ----------
    state
        Before the first of `frames`.
    undamaged
        (T, H, W): what the rule predicts without the damage.
    frame
        Number of the first frame.
    """
    states = [state, *subject.run_frames(state, frames, mask, frame)]
    shown = _brightness(subject, states)
    predictions = shown[1:]
    psnr = region_psnr(frames, predictions, region)
    near = psnr >= region_psnr(frames, undamaged, region) - RECOVERED
    far = np.flatnonzero(~near)
    lasting = int(far[-1]) + 2 if len(far) else 1  # a frame's end is the earliest moment
    return Recovery(
        damaged=shown[0],
        predictions=predictions,
        psnr=psnr,
        first=int(np.argmax(near)) + 1 if near.any() else None,
        lasting=lasting if lasting <= len(near) else None,
    )


def region_psnr(frames: Video, estimates: Video, region: Region) -> Values:
    """PSNR (T,) of a region in each frame, in dB."""
    return psnr_curve(frames[:, *region], estimates[:, *region])


# All of it


@dataclass(frozen=True, eq=False)
class Inspection:
    """All three experiments on one clip.

    Attributes
    ----------
    frames, mask
        (T, H, W): the truth, and which of its pixels arrive.
    channel_names, learned
        As an `Automaton` has them.
    onset
        Frame before which the state is damaged, and in which a sample is changed.
    region
        The damaged rows and columns.
    recoveries
        By kind of damage, as in `DAMAGES`.
    """

    config: RuleConfig
    frames: Video
    mask: Mask
    channel_names: tuple[str, ...]
    learned: int
    history: History
    onset: int
    ripple: Ripple
    region: Region
    recoveries: dict[str, Recovery]


def parse_pixel(text: str) -> tuple[int, int]:
    """Column and row that "X,Y" names; raise InputError if it names none."""
    try:
        x, y = map(int, text.split(","))
    except ValueError as error:
        raise InputError(f"--at {text} is no pixel: give X,Y such as 64,64") from error
    return x, y


def inspect(
    rule: Rule | LayeredRule,
    frames: Video,
    mask: Mask,
    at: tuple[int, int] | None = None,
    seed: int = 0,
    warm_up: int = WARM_UP,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Inspection:
    """Run all experiments.

    Parameters
    ----------
    frames, mask
        (T, H, W).
    at
        Column and row of the sample to change; by default the shown one nearest the centre.
    seed
        Of the random damage.
    warm_up
        Frames before the experiments begin.
    on_stage
        Is told what begins.

    Raises
    ------
    InputError
        If the clip is shorter than `warm_up` + `WATCHED` frames, `at` lies outside of it, or the
        rule cannot be shown or is not finite.
    """
    count, height, width = frames.shape
    if count < warm_up + WATCHED:
        raise InputError(
            f"{count} frames are too few to inspect, {warm_up} warm up and {WATCHED} are watched: "
            f"give a clip of at least {warm_up + WATCHED}, and --frames no less"
        )
    if at and not (0 <= at[0] < width and 0 <= at[1] < height):
        raise InputError(
            f"--at {at[0]},{at[1]} is outside the frames of {width} x {height} pixels: "
            f"give X from 0 to {width - 1} and Y from 0 to {height - 1}"
        )
    subject = automaton(rule)
    on_stage("channels")
    history = watch(subject, frames, mask)
    state, rest, shown = history.states[warm_up - 1], frames[warm_up:], mask[warm_up:]
    on_stage("one sample")
    ripple = perturb(subject, state, rest, shown, at or nearest_shown(shown[0]), warm_up)
    region = central_region(height, width, rule.config.block)
    recoveries = {}
    for name, damage in DAMAGES.items():
        on_stage(f"damage: {name}")
        recoveries[name] = recover(
            subject,
            damage(subject, state, region, seed),
            rest,
            shown,
            region,
            history.predictions[warm_up:],
            warm_up,
        )
    return Inspection(
        subject.config,
        frames,
        mask,
        subject.channel_names,
        subject.learned,
        history,
        warm_up,
        ripple,
        region,
        recoveries,
    )
