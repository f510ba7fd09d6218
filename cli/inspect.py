"""Look inside a rule: its channels over time, how far a change is heard, how damage heals.

All experiments know a rule only as an `Automaton`, so that they are the same for a float rule and
for an integer rule, and so that a test can put any step in its place. What a rule shows is its
picture: of one that sees video the prediction, of one that runs by itself what `Picture` finds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.model.float_rule import FloatRule
from scotopia.model.running import prediction
from scotopia.model.score import WARM_UP, psnr_curve
from scotopia.quantize.integer_rule import IntegerRule

from .automaton import Automaton, Mask, State, Values, Video, automaton
from .pictures import is_rgba, on_white

#: Frames that the experiments watch after the warm-up, at least.
WATCHED = 30

#: A difference in brightness that an 8-bit pixel can show.
VISIBLE = 1 / 255

#: A damaged region has recovered when its PSNR is this near to the undamaged one's, in dB.
RECOVERED = 0.5

#: That of a rule that runs by itself has, when it is so near to what it had been, in dB.
HEALED = 30.0

Region = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Picture:
    """What is shown of states: (H, W, K), of pixels and K colours, 0 to 1.

    Attributes
    ----------
    kind
        "prediction" of a video, brightness; "rgba", premultiplied colours on white; or "channel",
        the first one.
    block
        A cell stands for block x block pixels.
    low, high
        Values of the first channel that are black and white.
    """

    kind: str
    block: int = 1
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, subject: Automaton, values: Video) -> "Picture":
        """Choose it by what the states (T, C, h, w) of a run are."""
        if subject.sees:
            return cls("prediction", subject.block)
        if is_rgba(values):
            return cls("rgba")
        low, high = float(values[:, 0].min()), float(values[:, 0].max())
        return cls("channel", low=low, high=high if high > low else low + 1)

    def __call__(self, values: Values) -> Values:
        """Return the picture of a state's values (C, h, w), not clipped if it is a prediction."""
        if self.kind == "rgba":
            return on_white(values)
        if self.kind == "channel":
            return (values[0, :, :, None] - self.low) / (self.high - self.low)
        return prediction(values, self.block)[..., None].astype(np.float64)

    def clipped(self, subject: Automaton, states: Sequence[State]) -> Video:
        """Pictures of states, (T, H, W, K), clipped to [0, 1]."""
        pictures = [self(subject.values(state)) for state in states]
        return np.clip(pictures, 0, 1).astype(np.float32)


# Every channel over time


@dataclass(frozen=True, eq=False)
class History:
    """What a rule's channels do over T frames.

    Attributes
    ----------
    states
        The T states at the ends of the frames.
    values
        (T, C, h, w), all channels of all cells.
    picture, pictures
        What is shown, and (T, H, W, K) how that looks, in [0, 1].
    statistics
        Name to (T, C): mean, std, min and max over the cells, and `saturated`, the share of cells
        at an end of the channel's format (NaN without a format, or if it has but one bit).
    gates, gates_at_samples
        (T, gates): mean opening over a frame's steps and over all cells, or those that a sample
        reached in that frame (NaN without one).
    """

    states: list[State]
    values: Video
    picture: Picture
    pictures: Video
    statistics: dict[str, Values]
    gates: Values
    gates_at_samples: Values


def watch(subject: Automaton, frames: Video, mask: Mask) -> History:
    """Run a rule over a clip and keep everything.

    Raises
    ------
    InputError
        If a state is not finite.
    """
    height, width = (side // subject.block for side in frames.shape[1:])
    given = subject.inputs(frames, mask)
    state = subject.start(height, width)
    states, gates, gates_at_samples = [], [], []
    for number, inputs in enumerate(given):
        opened = np.zeros((len(subject.gated), height, width))
        steps = subject.steps_per_frame
        for after in subject.steps(state, inputs, number * steps):
            opened += subject.opened(after) / steps
        state = after
        if not np.isfinite(state).all():
            raise InputError(
                f"the rule's state is not finite at frame {number}: its weights are too large, "
                "train it again"
            )
        states.append(state)
        gates.append(opened.mean(axis=(1, 2)))
        cells = mask[number].reshape(height, subject.block, width, subject.block).any((1, 3))
        none = np.full(len(opened), np.nan)
        gates_at_samples.append(opened[:, cells].mean(axis=1) if cells.any() else none)
    values = np.stack([subject.values(state) for state in states]).astype(np.float32)
    picture = Picture.of(subject, values)
    return History(
        states=states,
        values=values,
        picture=picture,
        pictures=picture.clipped(subject, states),
        statistics=statistics(values, subject.ends),
        gates=np.stack(gates),
        gates_at_samples=np.stack(gates_at_samples),
    )


def statistics(values: Video, ends: Sequence[tuple[float, float]] = ()) -> dict[str, Values]:
    """Figures of (T, C, h, w) over the cells, as `History.statistics` has them."""
    cells = (2, 3)
    saturated = np.full(values.shape[:2], np.nan)
    for channel, (low, high) in enumerate(ends):
        if (low, high) != (0, 1):
            plane = values[:, channel]
            # What is not signed rests at 0.
            full = (plane >= high) | ((plane <= low) & (low < 0))
            saturated[:, channel] = full.mean((1, 2))
    return {
        "mean": values.mean(axis=cells, dtype=np.float64),
        "std": values.std(axis=cells, dtype=np.float64),
        "min": values.min(axis=cells).astype(np.float64),
        "max": values.max(axis=cells).astype(np.float64),
        "saturated": saturated,
    }


# How far a change is heard


@dataclass(frozen=True, eq=False)
class Ripple:
    """What one changed sample does to the picture, over S steps; or one cell that is erased.

    Attributes
    ----------
    frame, x, y
        Where the sample is changed, or the pixel that the cell is.
    added
        Whether that pixel arrived only because the experiment made it, in both runs.
    before, after
        The sample's brightness in either run; of an erased cell, the picture's.
    difference
        (S, H, W): |difference| of the pictures, the mean of their colours, after each step.
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
        is. An integer rule's last bits may change on for long, all over the array: the sum of
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
    subject: Automaton,
    history: History,
    frames: Video,
    mask: Mask,
    at: tuple[int, int],
    frame: int,
) -> Ripple:
    """Run on twice from what a run was before a frame, with a change in one of the two.

    One sample of that frame is changed by a half; of a rule that is shown nothing, a cell is set to
    0, as one is where nothing has grown.

    Parameters
    ----------
    frames, mask
        (T, H, W) of the whole clip.
    at
        Column and row of the sample, or of the cell.
    frame
        Above 0.
    """
    x, y = at
    state, picture = history.states[frame - 1], history.picture
    reached, changed, other = mask.copy(), frames.copy(), state
    if subject.sees:
        reached[frame, y, x] = True
        before = float(frames[frame, y, x])
        after = before + 0.5 if before <= 0.5 else before - 0.5
        changed[frame, y, x] = after
    else:
        other = state.copy()
        other[:, y, x] = 0
        before, after = (float(picture(subject.values(one))[y, x].mean()) for one in (state, other))

    away = distances(frames.shape[1:], x, y, subject.wraps, subject.block)
    difference, front = [], []
    runs = (
        subject.run(begin, subject.inputs(clip, reached)[frame:], frame)
        for begin, clip in ((state, frames), (other, changed))
    )
    for one, two in zip(*runs, strict=True):
        pictures = [picture(subject.values(state)) for state in (one, two)]
        difference.append(np.abs(pictures[0] - pictures[1]).mean(axis=2))
        cells = (one != two).any(axis=0)
        front.append(_farthest(cells.repeat(subject.block, 0).repeat(subject.block, 1), away))
    exact = np.stack(difference)
    total = exact.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        rows, columns = np.indices(away.shape)
        radius = np.sqrt((exact * ((rows - y) ** 2 + (columns - x) ** 2)).sum(axis=(1, 2)) / total)
    # A difference of one code of Q1.7 is 1/255 but for float64's rounding: it is not above.
    seen = exact > VISIBLE * (1 + 1e-9)
    visible = (exact * seen).sum(axis=(1, 2))
    later = np.flatnonzero(mask[frame + 1 :, y, x])
    return Ripple(
        frame=frame,
        x=x,
        y=y,
        added=subject.sees and not bool(mask[frame, y, x]),
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
        block=subject.block,
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
        (H, W, K), the picture of the damaged state before it runs on, in [0, 1].
    pictures
        (T, H, W, K), after each frame.
    psnr
        (T,): of the pictures against the truth, inside the region, in dB; of a rule that runs by
        itself against the undamaged run.
    first
        Frames until the PSNR is within `RECOVERED` of the undamaged run's, or above `HEALED`; None
        if it never is.
    lasting
        Frames until it is and stays so; None if it is not at the end.
    """

    damaged: Video
    pictures: Video
    psnr: Values
    first: int | None
    lasting: int | None


def central_region(height: int, width: int, block: int = 1) -> Region:
    """Rows and columns of a centred square of cells, a quarter of the shorter side wide."""
    side = max(1, min(height, width) // 4 // block) * block
    top, left = ((length - side) // 2 // block * block for length in (height, width))
    return slice(top, top + side), slice(left, left + side)


def set_to_start(subject: Automaton, state: State, cells: Region, seed: int) -> State:
    """Value of a state in which the cells are as at first; or 0, of one that runs by itself."""
    first = subject.start(*state.shape[1:]) if subject.sees else np.zeros_like(state)
    return _replaced(state, first, cells)


def set_to_random(subject: Automaton, state: State, cells: Region, seed: int) -> State:
    """Value of a state in which the cells' numbers are random, in every channel's range."""
    return _replaced(state, subject.scramble(np.random.default_rng(seed), state), cells)


def set_shared_to_random(subject: Automaton, state: State, cells: Region, seed: int) -> State:
    """As `set_to_random`, but what the cells keep to themselves stays as it is."""
    damaged = set_to_random(subject, state, cells, seed)
    damaged[list(subject.own)] = state[list(subject.own)]
    return damaged


#: Kinds of damage.
DAMAGES: dict[str, Callable[[Automaton, State, Region, int], State]] = {
    "zero": set_to_start,
    "random": set_to_random,
    "shared": set_shared_to_random,
}


def damages_of(subject: Automaton) -> list[str]:
    """Kinds of damage that differ for a rule: of its channels, cells may share all, or none."""
    some = 0 < len(subject.own) < len(subject.channel_names)
    return [name for name in DAMAGES if name != "shared" or some]


def _replaced(state: State, other: State, cells: Region) -> State:
    damaged = state.copy()
    damaged[:, *cells] = other[:, *cells]
    return damaged


def cells_of(region: Region, block: int) -> Region:
    """Return the cells of a region of pixels."""
    rows, columns = (slice(side.start // block, side.stop // block) for side in region)
    return rows, columns


def recover(
    subject: Automaton,
    history: History,
    state: State,
    frames: Video,
    mask: Mask,
    region: Region,
    frame: int,
) -> Recovery:
    """Run on from a damaged state, and compare with what was without the damage.

    Parameters
    ----------
    history
        Without the damage.
    state
        Before a frame of that number.
    frames, mask
        (T, H, W) of the whole clip.
    """
    given = subject.inputs(frames, mask)[frame:]
    shown = history.picture.clipped(subject, [state, *subject.run_frames(state, given, frame)])
    pictures, undamaged = shown[1:], history.pictures[frame:]
    if subject.sees:
        truth = frames[frame:, ..., None]
        psnr = region_psnr(truth, pictures, region)
        near = psnr >= region_psnr(truth, undamaged, region) - RECOVERED
    else:
        psnr = region_psnr(undamaged, pictures, region)
        near = psnr >= HEALED
    far = np.flatnonzero(~near)
    lasting = int(far[-1]) + 2 if len(far) else 1  # a frame's end is the earliest moment
    return Recovery(
        damaged=shown[0],
        pictures=pictures,
        psnr=psnr,
        first=int(np.argmax(near)) + 1 if near.any() else None,
        lasting=lasting if lasting <= len(near) else None,
    )


def region_psnr(frames: Video, estimates: Video, region: Region) -> Values:
    """PSNR (T,) of a region in each frame of pictures (T, H, W, K), in dB."""
    return psnr_curve(*(one[:, *region].reshape(len(one), 1, -1) for one in (frames, estimates)))


# All of it


@dataclass(frozen=True, eq=False)
class Inspection:
    """All three experiments on one clip.

    Attributes
    ----------
    subject
        What was looked into.
    frames, mask
        (T, H, W): the truth, and which of its pixels arrive; of a rule that is shown nothing, 0.
    onset
        Frame before which the state is damaged, and in which a sample is changed.
    region
        The damaged rows and columns.
    recoveries
        By kind of damage, as in `DAMAGES`.
    """

    subject: Automaton
    frames: Video
    mask: Mask
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
    rule: FloatRule | IntegerRule,
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
        (T, H, W); of a rule that takes no events, only how many there are of which size counts.
    at
        Column and row of the sample to change; by default the shown one nearest the centre. Of a
        rule that takes no events, of the cell to erase; by default the one in the centre.
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
    on_stage("one sample" if subject.sees else "one cell")
    ripple = perturb(subject, history, frames, mask, at or nearest_shown(mask[warm_up]), warm_up)
    region = central_region(height, width, subject.block)
    cells = cells_of(region, subject.block)
    recoveries = {}
    for name in damages_of(subject):
        on_stage(f"damage: {name}")
        damaged = DAMAGES[name](subject, history.states[warm_up - 1], cells, seed)
        recoveries[name] = recover(subject, history, damaged, frames, mask, region, warm_up)
    return Inspection(subject, frames, mask, history, warm_up, ripple, region, recoveries)
